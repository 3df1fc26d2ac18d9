"""What a model is, read once from its file: one frozen `ModelConfig`, filled from keys and from which tensors exist.

It is made from a header alone, before any memory is taken, and serves the pass, its plan and ``kqcap plan`` alike.
Whatever changes the pass and is not understood (an architecture, a key, a tensor) is refused here, by name.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .architectures import Pass, architecture_of
from .geometry import AttentionGeometry
from .tensors import LayerTensors, TensorTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..gguf.model_file import ModelFile
    from .tensors import Weight

# `expert_gating_func` of files: their names in lowlevel.ops.GATINGS
GATING_OF_NUMBER = {1: "softmax", 2: "sigmoid", 3: "softmax_selected", 4: "sqrt_softplus"}
# GLM-4.7-Flash says no gating function: it is known by its layers (with and without the predictor) and vocabulary.
_GLM_FLASH_LAYERS, _GLM_FLASH_VOCAB = (47, 48), 154880
# Keys of an architecture that the pass takes into account, here or in `AttentionGeometry`.
_READ = frozenset(
    """block_count context_length embedding_length feed_forward_length vocab_size
    leading_dense_block_count nextn_predict_layers
    expert_count expert_used_count expert_shared_count expert_feed_forward_length
    expert_shared_feed_forward_length expert_weights_scale expert_weights_norm expert_gating_func
    expert_group_count expert_group_used_count
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.key_length_mla attention.value_length_mla attention.key_length_swa attention.value_length_swa
    attention.q_lora_rank attention.kv_lora_rank attention.layer_norm_rms_epsilon attention.scale
    attention.sliding_window attention.sliding_window_pattern
    attn_logit_softcapping final_logit_softcapping
    rope.dimension_count rope.freq_base rope.freq_base_swa rope.scale_linear rope.dimension_count_swa
    rope.scaling.type rope.scaling.factor rope.scaling.attn_factor rope.scaling.original_context_length
    rope.scaling.yarn_log_multiplier rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow""".split()
)
# Keys that say nothing of the pass.
_HARMLESS = frozenset(
    """rope.scaling.finetuned tensor_data_layout attention.causal pooling_type
    attention.layer_norm_epsilon interleave_moe_layer_step""".split()
)


@dataclass(frozen=True)
class Rope:
    """How a kind of layers turns q and k: arguments of `lowlevel.ops.rope_frequencies`, and `pairs` of `rope`.

    `factors`: the tensor of divisors, or None.
    """

    n_rot: int
    pairs: str
    freq_base: float = 10000.0
    freq_scale: float = 1.0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    n_ctx_orig: int = 0
    factors: Weight | None = None


@dataclass(frozen=True)
class Routing:
    """How tokens choose experts: arguments of `lowlevel.ops.top_k_routing`."""

    n_expert: int
    n_expert_used: int
    gating: str
    n_group: int
    n_group_used: int
    normalise: bool
    scale: float


@dataclass(frozen=True)
class LayerConfig:
    """One layer.

    Attributes
    ----------
    index : int
    n_head, n_head_kv, d_k, d_v : int
        Of its attention; with latents (`kv_lora_rank` not 0) those of the decompressed heads.
    q_lora_rank, kv_lora_rank : int
        0: none.
    window : int
        Keys that it sees; 0: all.
    rope : Rope
    scale : float
        Of scores.
    softcap : float
        Of scores; 0: none.
    n_ff, n_ff_expert, n_ff_shared : int
        Widths of the dense part, of one expert, of the shared experts; 0: it has none.
    routing : Routing or None
    tensors : LayerTensors
        By name without "blk.N.".
    experts_on_host : bool
        Its routed experts are worked on by the CPU, whatever the device of the rest.
    """

    index: int
    n_head: int
    n_head_kv: int
    d_k: int
    d_v: int
    q_lora_rank: int
    kv_lora_rank: int
    window: int
    rope: Rope
    scale: float
    softcap: float
    n_ff: int
    n_ff_expert: int
    n_ff_shared: int
    routing: Routing | None
    tensors: LayerTensors
    experts_on_host: bool = False

    @property
    def is_latent(self) -> bool:
        return self.kv_lora_rank > 0

    @functools.cached_property
    def kind(self) -> tuple:
        """What its plan goes by: layers of one kind take the same memory."""
        sizes = self.n_head, self.n_head_kv, self.d_k, self.d_v, self.q_lora_rank, self.kv_lora_rank
        parts = self.window, self.n_ff, self.n_ff_expert, self.n_ff_shared, self.routing
        parts = *parts, self.experts_on_host
        tensors = tuple((name, *self.tensors[name].outline) for name in self.tensors)
        return *sizes, *parts, tensors

    @property
    def d_nope(self) -> int:
        """Columns of a key head that RoPE leaves alone, with latents: those that are decompressed."""
        return self.d_k - self.rope.n_rot


@dataclass(frozen=True)
class ModelConfig:
    """A model's sizes and traits, or those of some of its layers: `part`.

    Attributes
    ----------
    architecture : str
    traits : Pass
    n_embd, n_vocab, context_length : int
    eps : float
        Of every RMS norm.
    embedding_scale : float
    final_softcap : float
        Of logits; 0: none.
    n_layer : int
        Of the whole model.
    layers : tuple of LayerConfig
    token_embd, output_norm, output : Weight
        `output` is `token_embd` where the file has none.
    has_input, has_output : bool
        Passes begin with the embeddings of tokens, and end with logits; else rows come from the part before, and go
        to the one behind.
    """

    architecture: str
    traits: Pass
    n_embd: int
    n_vocab: int
    context_length: int
    eps: float
    embedding_scale: float
    final_softcap: float
    n_layer: int
    layers: tuple[LayerConfig, ...]
    token_embd: Weight
    output_norm: Weight
    output: Weight
    has_input: bool = True
    has_output: bool = True

    @property
    def has_last(self) -> bool:
        """Whether the model's last layer is among them: behind it only the rows whose logits are asked for matter."""
        return bool(self.layers) and self.layers[-1].index == self.n_layer - 1

    def part(self, start: int, stop: int, has_input: bool, has_output: bool) -> ModelConfig:
        """Some of the layers, with or without what stands before and behind them."""
        layers = self.layers[start:stop]
        return replace(self, layers=layers, has_input=has_input, has_output=has_output)

    def with_experts_on_host(self, layers: frozenset[int]) -> ModelConfig:
        """The same model, the routed experts of some layers (by index) worked on by the CPU."""
        if not layers:
            return self
        changed = (replace(x, experts_on_host=x.index in layers) for x in self.layers)
        return replace(self, layers=tuple(changed))

    def of_each_kind(self) -> ModelConfig:
        """The same model with one layer of each kind, and its last: its passes take the same memory."""
        kinds = {layer.kind: layer for layer in reversed(self.layers[:-1])}
        return replace(self, layers=(*reversed(kinds.values()), *self.layers[-1:]))

    @classmethod
    def from_file(cls, file: ModelFile, n_ctx: int | None = None) -> ModelConfig:
        """The config of an open file.

        Parameters
        ----------
        file : ModelFile
        n_ctx : int, optional
            The context it will run with, which chooses between long and short RoPE factors. None: the file's own.

        Raises
        ------
        ValueError
            An architecture, a key or a tensor that is not understood, missing or of a wrong shape; it is named.
        """
        return _Reader(file, n_ctx).config()


class _Reader:
    """Everything that one file's metadata and header say."""

    def __init__(self, file, n_ctx):
        self.metadata: Mapping[str, Any] = file.metadata
        self.attention: AttentionGeometry = file.attention
        self.architecture = self.attention.architecture
        row = architecture_of(self.architecture)
        if row.pass_ is None:
            raise ValueError(
                f"architecture {self.architecture!r}: its K/V cache can be planned, but its pass is not "
                "modelled here, so it cannot run"
            )
        self.traits = row.pass_
        self.tensors = TensorTable(file)
        self.n_ctx = n_ctx or self.attention.context_length
        self._refuse_unknown_keys()

    def _refuse_unknown_keys(self):
        prefix = self.architecture + "."
        for key in self.metadata:
            name = key.removeprefix(prefix)
            if name == key or name in _READ or name in _HARMLESS:
                continue
            value = self.metadata[key]
            if np.ndim(value) or not isinstance(value, (bool, int, float)) or value:
                raise ValueError(
                    f"metadata {key!r} is {value!r}: it may change the pass, and is not understood here"
                )

    def get(self, name, default=None):
        key = f"{self.architecture}.{name}"
        if key in self.metadata:
            return self.metadata[key]
        if default is None:
            raise ValueError(f"metadata {key!r} is missing")
        return default

    def real(self, name, default=None, least=0.0):
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"metadata '{self.architecture}.{name}' is {value!r}, not a number")
        if not (math.isfinite(value) and value >= least):
            raise ValueError(
                f"metadata '{self.architecture}.{name}' is {value!r}; expected at least {least}"
            )
        return float(value)

    def count(self, name, default=None, most=2**20):
        value = self.get(name, default)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(
                f"metadata '{self.architecture}.{name}' is {value!r}; expected a count up to {most}"
            )
        return value

    def config(self):
        attention, tensors = self.attention, self.tensors
        n_embd = attention.n_embd
        embedding = tensors.take("token_embd.weight", (None, n_embd))
        n_vocab = embedding.shape[0]
        norm = tensors.take("output_norm.weight", (n_embd,))
        output = tensors.take("output.weight", (n_vocab, n_embd), needed=False) or embedding
        ropes = self._ropes()
        layers = tuple(self._layer(il, ropes, n_vocab) for il in range(attention.n_layer))
        tensors.refuse_rest(attention.n_layer, attention.n_predictor)
        return ModelConfig(
            architecture=self.architecture,
            traits=self.traits,
            n_embd=n_embd,
            n_vocab=n_vocab,
            context_length=attention.context_length,
            eps=self.real("attention.layer_norm_rms_epsilon"),
            embedding_scale=math.sqrt(n_embd) if self.traits.scaled_embedding else 1.0,
            final_softcap=self.real("final_logit_softcapping", 0.0),
            n_layer=attention.n_layer,
            layers=layers,
            token_embd=embedding,
            output_norm=norm,
            output=output,
        )

    # ------------------------------------------------------------ RoPE

    def _ropes(self):
        """(of layers that see all keys, of layers with a window)"""
        attention, traits = self.attention, self.traits
        n_rot = attention.n_rot
        scaling = {**self._stretch(), "factors": self._factors(n_rot)}
        base = self.real("rope.freq_base", 10000.0)
        full = Rope(n_rot, traits.pairs, base, **scaling)
        if not traits.window_freq_base:
            return full, full
        base = self.real("rope.freq_base_swa", traits.window_freq_base)
        return full, Rope(n_rot, traits.pairs, base, factors=scaling["factors"])

    def _stretch(self):
        """What `rope.scaling` does to frequencies: Peng et al., "YaRN" (2023), section 3."""
        factor = self.real("rope.scaling.factor", 0.0) or self.real("rope.scale_linear", 0.0)
        kind = self.get("rope.scaling.type", "linear" if factor else "none")
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise ValueError(
                f"metadata '{self.architecture}.rope.scaling.type' is {kind!r}; "
                "understood are none, linear, yarn, longrope"
            )
        attn_factor = self.real("rope.scaling.attn_factor", 1.0)
        if kind in ("none", "longrope") or not factor:
            return dict(attn_factor=attn_factor)
        if kind == "linear":
            return dict(freq_scale=1 / factor, attn_factor=attn_factor)
        attn_factor *= self.real("rope.scaling.yarn_attn_factor", 1.0)
        if self._log_multiplier():
            if not self.attention.is_mla:
                raise ValueError(
                    f"metadata '{self.architecture}.rope.scaling.yarn_log_multiplier': "
                    "understood with latent attention only"
                )
            # The magnitude goes into the scale of scores as a whole (see `_score_scale`).
            attn_factor /= 1 + 0.1 * math.log(factor)
        return dict(
            freq_scale=1 / factor,
            ext_factor=self.real("rope.scaling.yarn_ext_factor", 1.0),
            attn_factor=attn_factor,
            beta_fast=self.real("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self.real("rope.scaling.yarn_beta_slow", 1.0),
            n_ctx_orig=self.count(
                "rope.scaling.original_context_length", self.attention.context_length, 2**31 - 1
            ),
        )

    def _log_multiplier(self):
        return self.real("rope.scaling.yarn_log_multiplier", 0.0)

    def _factors(self, n_rot):
        """The tensor of divisors, if there is one."""
        take = self.tensors.take
        original = self.count(
            "rope.scaling.original_context_length", self.attention.context_length, 2**31 - 1
        )
        by_length = [
            take(f"rope_factors_{name}.weight", (n_rot // 2,), needed=False)
            for name in ("long", "short")
        ]
        fixed = take("rope_freqs.weight", (n_rot // 2,), needed=False)
        return fixed or by_length[0 if self.n_ctx > original else 1]

    def _score_scale(self, n_head, d_k):
        if self.attention.n_layer == self.traits.head_scale_layers:
            d_k = self.attention.n_embd / n_head
        scale = self.real("attention.scale", 0.0) or 1 / math.sqrt(d_k)
        factor = self.real("rope.scaling.factor", 1.0)
        if self.attention.is_mla and self.get("rope.scaling.type", "none") == "yarn":
            # DeepSeek's mscale: the log multiplier is a tenth of it, and without one it is 1.
            scale *= (1 + (self._log_multiplier() or 0.1) * math.log(factor)) ** 2
        return scale

    # ------------------------------------------------------------ layers

    def _layer(self, il, ropes, n_vocab):
        attention, tensors = self.attention, self.tensors.layer(il)
        n_head, n_head_kv, window = (
            each if isinstance(each, int) else each[il]
            for each in (attention.n_head, attention.n_head_kv, attention.window)
        )
        if not (n_head and n_head_kv) or n_head % n_head_kv:
            raise ValueError(
                f"layer {il}: {n_head} heads and {n_head_kv} K/V heads; a pass needs a multiple of the latter"
            )
        d_k, d_v = attention.d_k, attention.d_v
        if window:
            d_k, d_v = attention.d_k_window or d_k, attention.d_v_window or d_v
        rope = ropes[1 if window else 0]
        if rope.n_rot % 2 or rope.n_rot > d_k:
            raise ValueError(f"layer {il}: RoPE turns {rope.n_rot} of {d_k} dimensions")
        n_embd, rank = attention.n_embd, attention.kv_lora_rank or 0
        sizes = dict(n_embd=n_embd, n_head=n_head, n_head_kv=n_head_kv, d_k=d_k, d_v=d_v)
        q_rank = 0
        if rank:
            q_rank = self.count("attention.q_lora_rank", 0) if tensors.has("attn_q_a.weight") else 0
            tensors.take_latent_attention(**sizes, rank=rank, q_rank=q_rank, n_rot=rope.n_rot)
        else:
            tensors.take_head_attention(**sizes)
        tensors.take_norms(n_embd)
        routing = None
        has_experts = tensors.has("ffn_gate_inp.weight")
        self._check_leading_dense(il, has_experts)
        if has_experts:
            routing = self._routing(n_vocab)
            tensors.take_experts(n_embd, routing.n_expert)
            if "post_ffw_norm.weight" in tensors:
                raise ValueError(
                    f"tensor 'blk.{il}.post_ffw_norm.weight': behind experts it is not understood here"
                )
        else:
            tensors.take_dense(n_embd)
        return LayerConfig(
            index=il,
            n_head=n_head,
            n_head_kv=n_head_kv,
            d_k=d_k,
            d_v=d_v,
            q_lora_rank=q_rank,
            kv_lora_rank=rank,
            window=window,
            rope=rope,
            scale=self._score_scale(n_head, d_k),
            softcap=self.real("attn_logit_softcapping", 0.0),
            n_ff=tensors.rows("ffn_down.weight", axis=-1),
            n_ff_expert=tensors.rows("ffn_down_exps.weight", axis=-1),
            n_ff_shared=tensors.rows("ffn_down_shexp.weight", axis=-1),
            routing=routing,
            tensors=tensors,
        )

    def _check_leading_dense(self, il, has_experts):
        """Raise ValueError where a file's key and its tensors say different things of a layer."""
        is_said = self.get("leading_dense_block_count", "") != ""
        if not is_said or not self.count("expert_count", 0):
            return
        n_dense = self.count("leading_dense_block_count")
        if has_experts == (il < n_dense):
            found = "experts" if has_experts else "no experts"
            raise ValueError(
                f"metadata '{self.architecture}.leading_dense_block_count' is {n_dense}; "
                f"but layer {il} has {found}"
            )

    def _routing(self, n_vocab):
        number = self.count("expert_gating_func", 0)
        is_glm_flash = (
            self.architecture == "deepseek2"
            and self.attention.n_layer + self.attention.n_predictor in _GLM_FLASH_LAYERS
            and n_vocab == _GLM_FLASH_VOCAB
        )
        if number and number not in GATING_OF_NUMBER:
            raise ValueError(
                f"metadata '{self.architecture}.expert_gating_func' is {number}; "
                f"understood are {GATING_OF_NUMBER}"
            )
        unsaid = "sigmoid" if is_glm_flash else self.traits.gating
        norm = self.get("expert_weights_norm", self.traits.norm_experts)
        if not isinstance(norm, bool):
            raise ValueError(
                f"metadata '{self.architecture}.expert_weights_norm' is {norm!r}, not a bool"
            )
        n_expert, n_used = self.count("expert_count"), self.count("expert_used_count")
        if not 1 <= n_used <= n_expert:
            raise ValueError(
                f"metadata '{self.architecture}.expert_used_count' is {n_used} of {n_expert} experts"
            )
        n_group = self.count("expert_group_count", 1) or 1
        return Routing(
            n_expert=n_expert,
            n_expert_used=n_used,
            gating=GATING_OF_NUMBER.get(number, unsaid),
            n_group=n_group,
            n_group_used=self.count("expert_group_used_count", n_group) or n_group,
            normalise=norm,
            scale=self.real("expert_weights_scale", 0.0) or 1.0,
        )
