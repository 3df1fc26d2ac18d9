"""Q, K and V of one layer of a real model file, for a prompt of random activations.

What the model does before its attention, kept to what shapes those: RMS norm, projection, latent
decompression and RoPE (plain frequencies). The activations are seeded noise, a block of tokens at
a time, so that a longer prompt begins with the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowlevel import ops
from quant import ModelFile

__all__ = ["Workload", "make_workload"]

BLOCK_TOKENS = 1024


@dataclass(frozen=True)
class Workload:
    """One layer's attention inputs, float32.

    Attributes
    ----------
    q : (n_head, n_query, d_k) array
        The last `n_query` tokens of the prompt.
    k : (n_head_kv, n_prompt, d_k) array
    v : (n_head_kv, n_prompt, d_v) array
    scale : float
        What scores are multiplied with.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scale: float


def make_workload(
    model: ModelFile,
    *,
    n_prompt: int,
    n_query: int,
    layer: int = 0,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n_tokens: None,
) -> Workload:
    """Q, K and V of `layer` of an open model file.

    Parameters
    ----------
    model : quant.ModelFile
    n_prompt, n_query : int
        Tokens of the prompt (keys), and how many of its last ones get queries.
    layer, seed : int
    advance : callable
        Told the number of tokens after each block, for a progress bar.

    Raises
    ------
    ValueError
        The file has no such layer, or its attention is of no kind known here.
    """
    project = _projection(model, layer)
    n_head, n_head_kv, d_k, d_v = project.sizes
    q = np.empty((n_head, n_query, d_k), np.float32)
    k = np.empty((n_head_kv, n_prompt, d_k), np.float32)
    v = np.empty((n_head_kv, n_prompt, d_v), np.float32)
    first_query = n_prompt - n_query
    for start in range(0, n_prompt, BLOCK_TOKENS):
        stop = min(start + BLOCK_TOKENS, n_prompt)
        rng = np.random.default_rng([seed, start])
        x = rng.standard_normal((BLOCK_TOKENS, project.n_embd), np.float32)[: stop - start]
        ops.rms_norm(x, project.attn_norm, eps=project.epsilon)
        positions = np.arange(start, stop, dtype=np.int32)
        k[:, start:stop], v[:, start:stop] = project.keys_and_values(x, positions)
        skipped = min(max(first_query - start, 0), stop - start)
        if skipped < stop - start:
            rows = slice(start + skipped - first_query, stop - first_query)
            q[:, rows] = project.queries(x[skipped:], positions[skipped:])
        advance(stop - start)
    return Workload(q=q, k=k, v=v, scale=project.scale)


def _projection(model, layer):
    geometry = model.attention
    if not 0 <= layer < geometry.n_layer:
        raise ValueError(f"layer: the model has layers 0 to {geometry.n_layer - 1}; got {layer}")
    kind = _LatentProjection if geometry.is_mla else _PlainProjection
    return kind(model, geometry, layer)


class _Projection:
    """The weights of one layer up to its attention, decoded to float32."""

    def __init__(self, model, geometry, layer):
        self._model = model
        self._prefix = f"blk.{layer}."
        self.geometry = geometry
        self.n_embd = geometry.n_embd
        self.sizes = (
            _of_layer(geometry.n_head, layer),
            _of_layer(geometry.n_head_kv, layer),
            geometry.d_k,
            geometry.d_v,
        )
        self.epsilon = self._metadata("attention.layer_norm_rms_epsilon", 1e-6)
        self._frequencies = ops.rope_frequencies(
            geometry.n_rot, freq_base=self._metadata("rope.freq_base", 10000.0)
        )
        self.attn_norm = self._weight("attn_norm")
        self.scale = self._mscale() ** 2 / math.sqrt(geometry.d_k)

    def _metadata(self, name, default):
        return self._model.metadata.get(f"{self.geometry.architecture}.{name}", default)

    def _has(self, name):
        return f"{self._prefix}{name}.weight" in self._model

    def _weight(self, name):
        import quant

        full_name = f"{self._prefix}{name}.weight"
        if full_name not in self._model:
            raise ValueError(
                f"{self._model.paths[0]}: no tensor {full_name}, which kqcap bench needs"
            )
        return quant.dequantize(self._model[full_name])

    def _mscale(self):
        """YaRN's attention factor as DeepSeek sets it; 1 for a model without."""
        log_multiplier = self._metadata("rope.scaling.yarn_log_multiplier", 0.0)
        factor = self._metadata("rope.scaling.factor", 1.0)
        return 1.0 + log_multiplier * math.log(factor) if log_multiplier else 1.0

    def _heads(self, y, n_head):
        """(n, n_head * d) -> (n_head, n, d)"""
        return y.reshape(len(y), n_head, -1).transpose(1, 0, 2)


class _PlainProjection(_Projection):
    """attn_q, attn_k, attn_v; RoPE on the first n_rot dimensions of each head."""

    def __init__(self, model, geometry, layer):
        super().__init__(model, geometry, layer)
        self._q, self._k, self._v = (self._weight(n) for n in ("attn_q", "attn_k", "attn_v"))

    def queries(self, x, positions):
        return self._turned(self._heads(x @ self._q.T, self.sizes[0]), positions)

    def keys_and_values(self, x, positions):
        n_head_kv = self.sizes[1]
        k = self._turned(self._heads(x @ self._k.T, n_head_kv), positions)
        return k, self._heads(x @ self._v.T, n_head_kv)

    def _turned(self, heads, positions):
        return ops.rope(heads, positions, self._frequencies)


class _LatentProjection(_Projection):
    """deepseek2: keys and values decompressed from a latent row; RoPE on a part of its own."""

    def __init__(self, model, geometry, layer):
        super().__init__(model, geometry, layer)
        self._n_nope = geometry.d_k - geometry.n_rot
        if self._has("attn_q"):
            self._q_down, self._q_up = None, self._weight("attn_q")
        else:
            self._q_down, self._q_up = self._weight("attn_q_a"), self._weight("attn_q_b")
            self._q_norm = self._weight("attn_q_a_norm")
        self._kv_down = self._weight("attn_kv_a_mqa")
        self._kv_norm = self._weight("attn_kv_a_norm")
        self._k_up, self._v_up = self._decompression()

    def _decompression(self):
        """Matrices (n_head, latent, d) that give K's part without RoPE, and V."""
        n_head, _, _, d_v = self.sizes
        latent, n_nope = self.geometry.kv_lora_rank, self._n_nope
        if self._has("attn_kv_b"):
            both = (
                self._weight("attn_kv_b").reshape(n_head, n_nope + d_v, latent).transpose(0, 2, 1)
            )
            return both[..., :n_nope], both[..., n_nope:]
        k_up = self._weight("attn_k_b").reshape(n_head, latent, n_nope)
        return k_up, self._weight("attn_v_b").reshape(n_head, d_v, latent).transpose(0, 2, 1)

    def queries(self, x, positions):
        if self._q_down is not None:
            x = ops.rms_norm(x @ self._q_down.T, self._q_norm, eps=self.epsilon)
        q = self._heads(x @ self._q_up.T, self.sizes[0])
        return ops.rope(q, positions, self._frequencies, offset=self._n_nope)

    def keys_and_values(self, x, positions):
        n_head, _, d_k, _ = self.sizes
        latent = self.geometry.kv_lora_rank
        row = x @ self._kv_down.T
        c_kv = ops.rms_norm(row[:, :latent], self._kv_norm, eps=self.epsilon)
        k_pe = ops.rope(row[None, :, latent:], positions, self._frequencies)
        k = np.empty((n_head, len(x), d_k), np.float32)
        k[..., : self._n_nope] = c_kv @ self._k_up
        k[..., self._n_nope :] = k_pe
        return k, c_kv @ self._v_up


def _of_layer(count, layer):
    return count if isinstance(count, int) else count[layer]
