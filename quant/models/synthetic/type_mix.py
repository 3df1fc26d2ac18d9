"""Which block format each tensor of a model gets: the bulk's, but for the table's exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType as QType

from ...formats import KV_FORMATS, block_format

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from quant.formats import BlockFormat
    from quant.models.synthetic.tensor_list import TensorSpec


# Always float32, as llama.cpp keeps them: they are small, and precision counts.
F32_ROLES = ("norm", "bias", "router", "rope_freqs")
# bulk type -> role -> type. Q2_K is as in the DeepSeek R1 file of the PR's log.
EXCEPTIONS = {
    QType.Q2_K: {
        "output": QType.Q6_K,
        "attn_v": QType.Q3_K,
        "attn_output": QType.Q3_K,
        "ffn_down": QType.Q3_K,
    },
    QType.Q3_K: {"output": QType.Q6_K},
    QType.Q4_K: {"output": QType.Q6_K},
    QType.Q4_0: {"output": QType.Q6_K},
    QType.IQ4_NL: {"output": QType.Q6_K},
}


def _finer(block, columns):
    """The next format that is no coarser and whose blocks `columns` weights fill: of as many bits the last."""
    fitting = [
        row
        for row in (*reversed(KV_FORMATS), block_format("F16"))
        if columns % row.block_weights == 0 and row.bits_per_weight >= block.bits_per_weight
    ]
    return min(fitting, key=lambda row: row.bits_per_weight)


def tensor_type(
    spec: TensorSpec,
    bulk: QType | str | BlockFormat,
    overrides: Mapping[str, Any] | None = None,
    pure: bool = False,
) -> BlockFormat:
    """The `BlockFormat` for one tensor.

    Parameters
    ----------
    spec : TensorSpec
    bulk : gguf.GGMLQuantizationType, str or BlockFormat
        For all tensors without an exception.
    overrides : dict of str to type, optional
        Types by role ("output", "token_embd", "attn_v", ...), stronger than the exceptions.
    pure : bool
        Leave the table of exceptions out; norms and routers stay float32.
    """
    role = spec.kind.role
    if role in F32_ROLES:
        return block_format("F32")
    bulk = block_format(bulk).qtype
    exception = bulk if pure else EXCEPTIONS.get(bulk, {}).get(role, bulk)
    chosen = block_format((overrides or {}).get(role, exception))
    columns = spec.shape[-1]
    return _finer(chosen, columns) if columns % chosen.block_weights else chosen
