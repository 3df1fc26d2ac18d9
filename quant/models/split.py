"""What each rank has of a model that is split by tensors: Shoeybi et al., "Megatron-LM" (arXiv:1909.08053), section 3;
where ranks divide the keys of the cache instead of the heads, of the feed-forward parts alone (see context.py).

A rank has some heads of attention, and some columns of every feed-forward part and of every expert. So all ranks do the
same work whatever tokens choose, and have buffers of the same size. What comes before the heads (latents, norms,
routers) and the residual stream are the same on all of them; each part's result is a sum over ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .config import LayerConfig, ModelConfig
    from .tensors import Weight

# The axis along which a tensor is cut: its outputs (0, of stacks of experts 1), or its columns, the last one. What is
# not listed is the same on all ranks.
_OF_HEADS = {
    "attn_q.weight": 0,
    "attn_q.bias": 0,
    "attn_q_b.weight": 0,
    "attn_k.weight": 0,
    "attn_k.bias": 0,
    "attn_v.weight": 0,
    "attn_v.bias": 0,
    "attn_sinks.weight": 0,
    "k_b": 0,
    "k_b_turned": 0,
    "v_b": 0,
    "attn_output.weight": 1,
}
_OF_FEED_FORWARD = {
    "ffn_gate.weight": 0,
    "ffn_up.weight": 0,
    "ffn_down.weight": 1,
    "ffn_gate_shexp.weight": 0,
    "ffn_up_shexp.weight": 0,
    "ffn_down_shexp.weight": 1,
    "ffn_gate_exps.weight": 1,
    "ffn_gate_exps.bias": 1,
    "ffn_up_exps.weight": 1,
    "ffn_up_exps.bias": 1,
    "ffn_down_exps.weight": 2,
}
# What is cut, by what ranks divide: where they divide the keys all have all heads.
AXES = {"tensor": {**_OF_HEADS, **_OF_FEED_FORWARD}, "context": _OF_FEED_FORWARD}


class Divided(NamedTuple):
    """Something that ranks share in equal parts: what it is, and how many parts there can be."""

    what: str
    n: int


def split_config(config: ModelConfig, split: str, rank: int, n_ranks: int) -> ModelConfig:
    """A rank's own part of a model, which its passes are recorded of.

    Parameters
    ----------
    config : ModelConfig
        The whole.
    split : str
        A key of `AXES`.
    rank, n_ranks : int

    Returns
    -------
    ModelConfig

    Raises
    ------
    ValueError
        Something does not divide; it is named, with the numbers of ranks that would do.
    """
    check_split(config, split, n_ranks)
    layers = tuple(_layer(layer, split, rank, n_ranks) for layer in config.layers)
    return dataclasses.replace(config, layers=layers)


def check_split(config: ModelConfig, split: str, n_ranks: int) -> None:
    """Raise ValueError where a model cannot be split so over so many ranks; see `split_config`."""
    for layer in config.layers if n_ranks > 1 else ():
        if split == "tensor":
            _refuse_wide_norms(layer)
        elif layer.window:
            raise ValueError(
                f"split: layer {layer.index} sees a window of {layer.window} keys, which every rank holds; "
                'split "tensor" would do'
            )
    parts = [each for layer in config.layers for each in divided(layer, split)]
    common = math.gcd(*(each.n for each in parts))
    for each in parts:
        if each.n % n_ranks:
            counts = [str(n) for n in range(2, common + 1) if common % n == 0]
            works = f"{', '.join(counts)} would do" if counts else "no number of ranks would do"
            raise ValueError(
                f"split: {n_ranks} ranks do not divide {each.what}: {each.n} parts at most; {works}"
            )


def divided(layer: LayerConfig, split: str) -> Iterator[Divided]:
    """All that must divide: heads, and columns in whole blocks."""
    where = f"layer {layer.index}"
    if split != "tensor":
        pass
    elif layer.is_latent:
        yield Divided(f"the {layer.n_head} heads of {where}", layer.n_head)
    else:
        yield Divided(f"the {layer.n_head_kv} K/V heads of {where}", layer.n_head_kv)
    for name, axis in AXES[split].items():
        weight = layer.tensors.get(name)
        if weight is None:
            continue
        unit = weight.format.block_weights if axis == len(weight.shape) - 1 else 1
        n = weight.shape[axis] // unit
        blocks = f" in blocks of {unit}" if unit > 1 else ""
        yield Divided(f"axis {axis} of {weight.name} {weight.shape}{blocks}", n)


def _refuse_wide_norms(layer):
    for name, n_head in (("attn_q_norm", layer.n_head), ("attn_k_norm", layer.n_head_kv)):
        weight: Weight | None = layer.tensors.get(f"{name}.weight")
        if weight is not None and n_head > 1 and weight.shape[0] == n_head * layer.d_k:
            raise ValueError(
                f"split: tensor {weight.name!r} normalises all heads as one row, which ranks would have to "
                'share; split "context" would do'
            )


def _layer(layer, split, rank, n):
    cut = {
        name: layer.tensors[name].cut(rank, n, axis)
        for name, axis in AXES[split].items()
        if name in layer.tensors
    }
    of_heads = n if split == "tensor" else 1
    return dataclasses.replace(
        layer,
        n_head=layer.n_head // of_heads,
        n_head_kv=layer.n_head_kv // of_heads,
        n_ff=layer.n_ff // n,
        n_ff_expert=layer.n_ff_expert // n,
        n_ff_shared=layer.n_ff_shared // n,
        tensors=layer.tensors.replaced(cut),
    )
