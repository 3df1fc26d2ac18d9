"""Seeded random weights for a model's tensors, in slabs: memory stays small, and a tensor's weights
depend only on the seed, its name and shape, not on what else is in the file."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..geometry import ModelGeometry
    from .tensor_list import TensorSpec


SLAB_WEIGHTS = 2**20


def slabs(spec: TensorSpec, geometry: ModelGeometry, seed: int) -> Iterator[np.ndarray]:
    """The weights of one tensor.

    Parameters
    ----------
    spec : TensorSpec
    geometry : ModelGeometry
    seed : int

    Returns
    -------
    list of callables
        Each gives the next rows, a float32 array (rows, columns), from any thread and in any order.
    """
    return _FILLS[spec.kind.fill](spec, geometry, seed)


def _normal(spec, geometry, seed):
    columns = spec.shape[-1]
    # 1/sqrt(columns) keeps unit variance through a product, as trained weights roughly do.
    std = columns**-0.5 if spec.kind.std is None else spec.kind.std

    def rows(index, count):
        return _standard_normal(seed, spec.name, index, (count, columns)) * np.float32(std)

    return [_bound(rows, index, count) for index, count in enumerate(_row_counts(spec.shape))]


def _norm(spec, geometry, seed):
    """Around 1, as trained ones, and never the same twice: a norm left out or mistaken for another one shows."""
    return [_plus_one(part) for part in _normal(spec, geometry, seed)]


def _plus_one(part):
    return lambda: part() + np.float32(1)


def _rope_freqs(spec, geometry, seed):
    divisors = geometry.rope_scaling.divisors(geometry.n_rot, geometry.rope_freq_base)
    return [lambda: divisors[None]]


def _rope_long(spec, geometry, seed):
    return [lambda: geometry.rope_scaling.divisors(geometry.n_rot, long=True)[None]]


def _rope_short(spec, geometry, seed):
    return [lambda: geometry.rope_scaling.divisors(geometry.n_rot, long=False)[None]]


def _kv_b(spec, geometry, seed):
    """The decompression of MLA's latent, one slab a head: K without RoPE, then V."""
    shape = (geometry.d_nope + geometry.d_v, geometry.kv_lora_rank)
    scale = np.float32(geometry.kv_lora_rank**-0.5)
    layer = spec.name.rpartition(".attn_")[0]

    def head(index):
        return _standard_normal(seed, f"{layer}.attn_kv_b.weight", index, shape) * scale

    return [_bound(head, index) for index in range(geometry.n_head)]


def _k_b(spec, geometry, seed):
    """The K part of `_kv_b`, transposed: it takes queries into the latent space."""

    def transposed(head):
        return np.ascontiguousarray(head()[: geometry.d_nope].T)

    return [_bound(transposed, head) for head in _kv_b(spec, geometry, seed)]


def _v_b(spec, geometry, seed):
    def value_part(head):
        return head()[geometry.d_nope :]

    return [_bound(value_part, head) for head in _kv_b(spec, geometry, seed)]


_FILLS = {
    "normal": _normal,
    "norm": _norm,
    "rope_freqs": _rope_freqs,
    "rope_long": _rope_long,
    "rope_short": _rope_short,
    "kv_b": _kv_b,
    "k_b": _k_b,
    "v_b": _v_b,
}


def _bound(function, *arguments):
    return lambda: function(*arguments)


def _standard_normal(seed, name, index, shape):
    entropy = (seed, zlib.crc32(name.encode()), index)
    return np.random.default_rng(entropy).standard_normal(shape, dtype=np.float32)


def _row_counts(shape):
    """How many rows each slab has."""
    n_rows = 1
    for size in shape[:-1]:
        n_rows *= size
    step = max(1, SLAB_WEIGHTS // shape[-1])
    return [min(step, n_rows - start) for start in range(0, n_rows, step)]
