"""Which block format each tensor of a model gets, as real files have them: a mix is a type for the bulk and rules.

The rules by tensor, layer and model are those of llama.cpp's quantiser without an importance matrix (llama-quant.cpp,
llama_tensor_get_type), as are the fallbacks where a row does not fill blocks. "UD-" mixes stand for files that others
make with one, tensor by tensor as they measured: here by class, of the types that such a file has.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from ...formats import FORMATS, BlockFormat, block_format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from quant.models.synthetic.tensor_list import TensorSpec

    from ..geometry import ModelGeometry


# Always float32, as llama.cpp keeps them: they are small, and precision counts.
F32_ROLES = ("norm", "bias", "router", "rope_freqs")


class Outline(NamedTuple):
    """What rules ask of a model."""

    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int
    has_output: bool  # as a tensor of its own

    @property
    def shares_kv(self) -> bool:
        """Whether four query heads or more share one of K and V."""
        return self.n_head >= 4 * self.n_head_kv


def outline_of(geometry: ModelGeometry, specs: Sequence[TensorSpec]) -> Outline:
    """The `Outline` of a model with these tensors."""
    return Outline(
        geometry.n_layer,
        geometry.n_head,
        geometry.n_head_kv,
        geometry.n_expert,
        any(spec.name == "output.weight" for spec in specs),
    )


# ---------------------------------------------------------------- rules
# Conditions take the layer's number and the model.


def _always(il: int, model: Outline) -> bool:
    return True


def _shared_kv(il: int, model: Outline) -> bool:
    return model.shares_kv


def _eight_experts(il: int, model: Outline) -> bool:
    return model.n_expert == 8


def _some_experts(il: int, model: Outline) -> bool:
    return model.n_expert > 0


def _shared_kv_or_experts(il: int, model: Outline) -> bool:
    return model.shares_kv or model.n_expert >= 4


def _middle_layers(il: int, model: Outline) -> bool:
    return model.n_layer // 8 <= il < 7 * model.n_layer // 8


def _first_eighth_or_eight_experts(il: int, model: Outline) -> bool:
    return il < model.n_layer // 8 or (_eight_experts(il, model) and _more_bits(il, model))


def _more_bits(il: int, model: Outline) -> bool:
    """The first and the last eighth of the layers, and each third one between them."""
    eighth = model.n_layer // 8
    return il < eighth or il >= 7 * model.n_layer // 8 or (il - eighth) % 3 == 2


def _first(n: int) -> Callable[[int, Outline], bool]:
    return lambda il, model: il < n


def _first_part(divisor: int) -> Callable[[int, Outline], bool]:
    return lambda il, model: il < model.n_layer // divisor


class Rule(NamedTuple):
    """Tensors whose stem (``"attn_v"``, ``"ffn_down_exps"``, ...) a pattern matches get a type where a condition holds."""

    stems: str
    type: str
    where: Callable[[int, Outline], bool] = _always


class Mix(NamedTuple):
    """Of the rules that hold for a tensor the first counts; `file_type`: what general.file_type is named after."""

    bulk: str
    rules: tuple[Rule, ...] = ()
    file_type: str = ""


_ATTN_V, _ATTN_OUTPUT, _ATTN_QKV, _FFN_DOWN = "attn_v", "attn_output", "attn_qkv", "ffn_down.*"
_OUTPUT = Rule("output", "Q6_K")
# With eight experts attention is small beside them.
_OF_EIGHT = (Rule("attn_[kv]", "Q8_0", _eight_experts), Rule("attn_output", "Q5_K", _eight_experts))
_KV_OF_EIGHT = Rule("attn_[kv]|attn_qkv|attn_kv_b", "Q8_0", _eight_experts)
_OUTPUT_OF_EIGHT = Rule(_ATTN_OUTPUT, "Q5_K", _eight_experts)
_LIKE_V = "attn_v|attn_qkv|attn_kv_b"


def _two_bits(bulk: str, better: str, embedding: str, attn_output: str = "") -> Mix:
    """Of about two bits and less: what counts most in `better`. llama.cpp makes them with an importance matrix alone."""
    rules = (
        Rule("output", "Q5_K"),
        Rule("token_embd", embedding),
        Rule(_LIKE_V, "Q4_K", _shared_kv_or_experts),
        Rule(_LIKE_V, better),
        Rule("attn_k", "Q4_K", _eight_experts),
        Rule(_FFN_DOWN, better, _first_part(8)),
        _OUTPUT_OF_EIGHT,
    )
    return Mix(bulk, (*rules, Rule(_ATTN_OUTPUT, attn_output)) if attn_output else rules)


def _ternary(bulk: str) -> Mix:
    return Mix(bulk, (_OUTPUT, Rule("token_embd", "Q4_K")))


MIXES: dict[str, Mix] = {
    "Q4_0": Mix("Q4_0", (_OUTPUT,)),
    "Q4_1": Mix("Q4_1", (_OUTPUT,)),
    "Q5_0": Mix("Q5_0", (_OUTPUT,)),
    "Q5_1": Mix("Q5_1", (_OUTPUT,)),
    "IQ4_NL": Mix("IQ4_NL", (_OUTPUT, *_OF_EIGHT, Rule(_ATTN_V, "Q5_K", _shared_kv))),
    "IQ4_XS": Mix("IQ4_XS", (_OUTPUT, *_OF_EIGHT, Rule(_ATTN_V, "Q5_K", _shared_kv))),
    "Q2_K": Mix(
        "Q2_K",
        (
            _OUTPUT,
            *_OF_EIGHT,
            Rule(_ATTN_V, "Q4_K", _shared_kv),
            Rule(f"{_ATTN_V}|{_ATTN_OUTPUT}|{_FFN_DOWN}", "Q3_K"),
        ),
    ),
    "Q3_K_S": Mix("Q3_K", (_OUTPUT, *_OF_EIGHT)),
    "Q3_K_M": Mix(
        "Q3_K",
        (
            _OUTPUT,
            *_OF_EIGHT,
            Rule(_ATTN_V, "Q5_K", _first(2)),
            Rule(_FFN_DOWN, "Q5_K", _first_part(16)),
            Rule(f"{_ATTN_V}|{_ATTN_OUTPUT}|{_ATTN_QKV}|{_FFN_DOWN}", "Q4_K"),
        ),
    ),
    "Q3_K_L": Mix(
        "Q3_K",
        (
            _OUTPUT,
            Rule("attn_[kv]", "Q8_0", _eight_experts),
            Rule(_ATTN_QKV, "Q4_K"),
            Rule(f"{_ATTN_V}|{_ATTN_OUTPUT}|{_FFN_DOWN}", "Q5_K"),
        ),
    ),
    "Q4_K_S": Mix(
        "Q4_K",
        (
            _OUTPUT,
            *_OF_EIGHT,
            Rule(_ATTN_V, "Q5_K", _first(4)),
            Rule(_FFN_DOWN, "Q5_K", _first_part(8)),
        ),
    ),
    "Q4_K_M": Mix(
        "Q4_K",
        (
            _OUTPUT,
            *_OF_EIGHT,
            Rule(_ATTN_QKV, "Q5_K"),
            Rule(f"{_ATTN_V}|{_FFN_DOWN}", "Q6_K", _more_bits),
        ),
    ),
    "Q5_K_S": Mix("Q5_K", (_OUTPUT, Rule("attn_[kv]", "Q8_0", _eight_experts))),
    "Q5_K_M": Mix(
        "Q5_K",
        (
            _OUTPUT,
            Rule("attn_[kv]", "Q8_0", _eight_experts),
            Rule(_ATTN_QKV, "Q6_K"),
            Rule(f"{_ATTN_V}|{_FFN_DOWN}", "Q6_K", _more_bits),
        ),
    ),
    # llama.cpp's IQ2_S has IQ2_XS in bulk, and IQ2_M IQ2_S.
    "IQ1_S": _two_bits("IQ1_S", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ1_M": _two_bits("IQ1_M", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ2_XXS": _two_bits("IQ2_XXS", "Q2_K", "Q2_K"),
    "IQ2_XS": _two_bits("IQ2_XS", "Q2_K", "Q2_K"),
    "IQ2_S": _two_bits("IQ2_XS", "IQ3_S", "IQ3_S", "IQ3_S"),
    "IQ2_M": _two_bits("IQ2_S", "IQ3_S", "IQ3_S", "IQ3_S"),
    "IQ3_XXS": Mix(
        "IQ3_XXS",
        (
            Rule("output", "Q5_K"),
            Rule("token_embd", "IQ3_S"),
            _KV_OF_EIGHT,
            Rule(_LIKE_V, "Q4_K", _shared_kv),
            Rule(_LIKE_V, "IQ3_S"),
            Rule("attn_[qk]", "IQ2_S"),
            Rule(_FFN_DOWN, "Q4_K", _first_part(8)),
            Rule(_FFN_DOWN, "Q3_K"),
            _OUTPUT_OF_EIGHT,
            Rule(_ATTN_OUTPUT, "IQ3_S"),
        ),
    ),
    "IQ3_XS": Mix(
        "IQ3_S",
        (
            _OUTPUT,
            _KV_OF_EIGHT,
            Rule(_LIKE_V, "Q4_K", _shared_kv),
            Rule("attn_[qk]", "IQ3_XXS"),
            Rule("ffn_(gate|up).*", "IQ3_XXS", _middle_layers),
            _OUTPUT_OF_EIGHT,
        ),
    ),
    "IQ3_S": Mix(
        "IQ3_S", (_OUTPUT, _KV_OF_EIGHT, Rule(_LIKE_V, "Q4_K", _shared_kv), _OUTPUT_OF_EIGHT)
    ),
    "IQ3_M": Mix(
        "IQ3_S",
        (
            _OUTPUT,
            _KV_OF_EIGHT,
            Rule(_FFN_DOWN, "Q4_K", _first_eighth_or_eight_experts),
            _OUTPUT_OF_EIGHT,
            Rule(f"{_LIKE_V}|{_ATTN_OUTPUT}", "Q4_K"),
        ),
    ),
    "TQ1_0": _ternary("TQ1_0"),
    "TQ2_0": _ternary("TQ2_0"),
    "Q2_0": _ternary("Q2_0"),
    # DeepSeek R1's file of that name: experts in IQ1_S but for six layers' ffn_down, the rest in four to six bits.
    "UD-IQ1_S": Mix(
        "IQ1_S",
        (
            _OUTPUT,
            Rule("token_embd", "Q4_K"),
            Rule("attn_kv_a_mqa|attn_kv_b|attn_k_b|attn_v_b|ffn_down_shexp|ffn_down", "Q6_K"),
            Rule("ffn_(gate|up)_shexp", "Q5_K"),
            Rule("attn_.*", "Q4_K"),
            Rule("ffn_gate|ffn_up", "Q4_K", _some_experts),  # of leading dense layers
            Rule("ffn_down_exps", "IQ2_XXS", _first(9)),
        ),
        file_type="IQ1_S",
    ),
    # DeepSeek V3's and R1's files of that name have q8_0, q2_K, q3_K, q4_K, q5_K and q6_K: routed experts in the
    # lowest, what every token passes through in more.
    "UD-Q2_K_XL": Mix(
        "Q2_K",
        (
            _OUTPUT,
            Rule("token_embd", "Q4_K"),
            Rule("attn_k_b|attn_v_b|attn_kv_a_mqa|attn_kv_b", "Q8_0"),
            Rule(f"{_ATTN_V}|.*_shexp", "Q6_K"),
            Rule("attn_.*", "Q5_K"),
            Rule("ffn_down|ffn_down_exps", "Q4_K", _more_bits),
            Rule("ffn_down|ffn_down_exps", "Q3_K"),
            Rule("ffn_gate|ffn_up", "Q4_K", _some_experts),  # of leading dense layers
        ),
        file_type="Q2_K",
    ),
    # gpt-oss: routed experts alone.
    "MXFP4_MOE": Mix("Q8_0", (Rule("ffn_.*_exps", "MXFP4"),)),
}
# A format's name is the mix of that bulk; of those whose mixes have sizes, the small one.
_SMALL = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}
# What a tensor gets whose rows do not fill blocks; F16 where that does not fit either.
FALLBACKS = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q2_0": "Q4_0",
    **{row.name: "IQ4_NL" for row in FORMATS.values() if row.grid},
}


def mix_of(qtype: Any, pure: bool = False) -> tuple[str, Mix]:
    """The name and the `Mix` of a type, which may be a mix's name in any case, or a format.

    Parameters
    ----------
    qtype : str, gguf.GGMLQuantizationType or BlockFormat
    pure : bool
        The bulk's type alone.

    Raises
    ------
    ValueError
        No such type or mix.
    """
    name = qtype.upper() if isinstance(qtype, str) else block_format(qtype).name
    if name not in MIXES:
        try:
            block_format(name)
        except ValueError as error:
            raise ValueError(f"{error}; mixes: {', '.join(MIXES)}") from None
        name = _SMALL.get(name, name)
    mix = MIXES.get(name) or Mix(name)
    if pure:
        mix = Mix(mix.bulk, file_type=mix.file_type)
    return name, mix


# ---------------------------------------------------------------- a tensor's type

_NAME = re.compile(r"(?:blk\.(\d+)\.)?(.+?)(?:\.(?:weight|bias))?")


@functools.cache
def _layer_and_stem(name):
    layer, stem = _NAME.fullmatch(name).groups()
    return int(layer or 0), stem


def _by_rules(spec, mix, model):
    layer, stem = _layer_and_stem(spec.name)
    if stem == "token_embd" and not model.has_output:
        stem = "output"  # it is multiplied with as that
    for rule in mix.rules:
        if re.fullmatch(rule.stems, stem) and rule.where(layer, model):
            return rule.type
    return mix.bulk


def tensor_type(
    spec: TensorSpec,
    mix: Mix,
    model: Outline,
    overrides: Mapping[str, Any] | None = None,
    type_map: Sequence[tuple[str, Any]] = (),
) -> BlockFormat:
    """The `BlockFormat` for one tensor.

    Parameters
    ----------
    spec : TensorSpec
    mix : Mix
    model : Outline
    overrides : dict of str to type, optional
        Types by role ("output", "token_embd", "attn_v", ...), stronger than the mix.
    type_map : sequence of (str, type)
        Types by regular expression, found anywhere in the tensor's name; stronger than all else, the first
        that matches counts. Norms, biases and routers stay float32.
    """
    if is_f32(spec):
        return block_format("F32")
    chosen = (overrides or {}).get(spec.kind.role) or _by_rules(spec, mix, model)
    chosen = next((qtype for form, qtype in type_map if re.search(form, spec.name)), chosen)
    return _fitting(block_format(chosen), spec.shape[-1])


def is_f32(spec: TensorSpec) -> bool:
    """Whether a tensor is float32 whatever the mix."""
    return spec.kind.role in F32_ROLES


def _fitting(block, columns):
    """`block`, or what takes its place in rows of so many columns."""
    while columns % block.block_weights:
        block = block_format(FALLBACKS.get(block.name, "F16"))
    return block


def check_type_map(type_map: Sequence[tuple[str, Any]], specs: Sequence[TensorSpec]) -> None:
    """Raise ValueError for an expression that is none, or that no tensor which has a type of its own matches."""
    names = [spec.name for spec in specs if not is_f32(spec)]
    for form, qtype in type_map:
        block_format(qtype)
        try:
            found = any(re.search(form, name) for name in names)
        except re.error as error:
            raise ValueError(f"type_map: {form!r} is no regular expression: {error}") from None
        if not found:
            raise ValueError(
                f"type_map: no tensor's name matches {form!r} (norms, biases and routers are float32 always); "
                f"names are such as {', '.join(names[:3])}"
            )
