"""Sizes of models: the attention geometry of any model file, and named geometries as data.

Shapes follow NumPy, slowest axis first: a matrix is (rows = outputs, columns = inputs).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .architectures import LATENT, architecture_of, refuse_unmodelled_keys, windowed_layers
from .parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


# llama.cpp's llama_expert_gating_func_type: of all experts, each for itself, of those that were selected, ...
EXPERT_GATING = {"softmax": 1, "sigmoid": 2, "softmax-selected": 3, "sqrt-softplus": 4}
TOKENIZERS = ("gpt2", "llama")
MLA_FORMS = ("split", "fused", "both")
# The largest that each size may be: far more than any model has, little enough that a file of it is either
# written a few MiB at a time or refused for its size. (n_vocab: what the tokenizer can name, model_metadata.)
MOST = {
    "n_layer": 4096,
    "n_layer_dense": 4096,
    "n_embd": 2**20,
    "n_head": 2**16,
    "n_head_kv": 2**16,
    "d_k": 2**12,
    "d_v": 2**12,
    "n_rot": 2**12,
    "q_lora_rank": 2**20,
    "kv_lora_rank": 2**13,
    "n_ff": 2**20,
    "n_ff_expert": 2**20,
    "n_expert": 2**12,
    "n_expert_used": 2**12,
    "n_expert_shared": 2**8,
    "n_expert_group": 2**8,
    "n_expert_group_used": 2**8,
    "n_predictor": 2**8,
    "window": 2**31 - 1,
    "window_period": 2**8,
    "context_length": 2**31 - 1,
}
# The same for what files say, by key.
_SIZE_OF_KEY = {
    "block_count": "n_layer",
    "nextn_predict_layers": "n_layer",
    "embedding_length": "n_embd",
    "attention.head_count": "n_head",
    "attention.head_count_kv": "n_head_kv",
    "attention.key_length": "d_k",
    "attention.key_length_mla": "d_k",
    "attention.key_length_swa": "d_k",
    "attention.value_length": "d_v",
    "attention.value_length_mla": "d_v",
    "attention.value_length_swa": "d_v",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "n_rot",
}


@dataclass(frozen=True)
class AttentionGeometry:
    """What a plan of the attention needs to know of a model.

    With MLA (`kv_lora_rank` set) the sizes are those of the decompressed form: `n_head_kv` equals
    `n_head`, `d_k` and `d_v` are per head; the absorbed form is one key/value head of
    `d_k_latent` and `kv_lora_rank`.

    Attributes
    ----------
    architecture : str
    n_layer, n_embd, context_length : int
    n_head, n_head_kv : int or tuple of int
        One number, or one per layer where layers differ.
    d_k, d_v : int
        Head sizes of keys and values.
    n_rot : int
        Dimensions of a head that RoPE turns.
    kv_lora_rank : int or None
        Width of the latent of MLA; None without MLA.
    window : int or tuple of int
        Keys that a layer sees, for each layer where they differ; 0: all.
    d_k_window, d_v_window : int or None
        Head sizes of the layers with a window, where they are others.
    n_predictor : int
        Layers behind the `n_layer` that predict further tokens (NextN): no part of a plain pass.
    """

    architecture: str
    n_layer: int
    n_embd: int
    context_length: int
    n_head: int | tuple
    n_head_kv: int | tuple
    d_k: int
    d_v: int
    n_rot: int
    kv_lora_rank: int | None = None
    window: int | tuple = 0
    d_k_window: int | None = None
    d_v_window: int | None = None
    n_predictor: int = 0

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def no_heads(self) -> str:
        """The message where no layer has attention heads."""
        return (
            f"no layer has attention heads with K and V: '{self.architecture}.attention.head_count' is "
            f"{self.n_head} and '{self.architecture}.attention.head_count_kv' {self.n_head_kv} "
            "(an architecture without attention?)"
        )

    @property
    def d_k_latent(self) -> int | None:
        """Width of a cached MLA row, RoPE part included; None without MLA."""
        return None if self.kv_lora_rank is None else self.kv_lora_rank + self.n_rot

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> AttentionGeometry:
        """Read the geometry from a model file's metadata (any mapping of GGUF keys to values).

        Raises
        ------
        ValueError
            A key is missing or makes no sense; the message names it.
        """
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError(f"metadata 'general.architecture' is {architecture!r}, not a name")
        keys = _Keys(metadata, architecture)
        n_block = keys.count("block_count")
        n_predictor = keys.count("nextn_predict_layers", 0)
        if n_predictor >= n_block:
            raise ValueError(
                f"metadata '{architecture}.nextn_predict_layers' is {n_predictor}, of {n_block} layers"
            )
        n_layer = n_block - n_predictor
        n_embd = keys.count("embedding_length")
        n_head = keys.count_or_per_layer("attention.head_count", n_layer)
        n_head_kv = keys.count_or_per_layer("attention.head_count_kv", n_layer, n_head)
        traits = architecture_of(architecture)
        refuse_unmodelled_keys(metadata, architecture)
        kv_lora_rank = keys.count("attention.kv_lora_rank", 0) or None
        if traits.cache != LATENT:
            kv_lora_rank = None
        head_size = n_embd // max(1, n_head if isinstance(n_head, int) else max(n_head))
        d_k = keys.count("attention.key_length", head_size)
        d_v = keys.count("attention.value_length", head_size)
        if kv_lora_rank is not None:
            # Newer files give the absorbed sizes (576, 512) here and these beside them;
            # older ones, without them, give the decompressed sizes.
            d_k = keys.count("attention.key_length_mla", d_k)
            d_v = keys.count("attention.value_length_mla", d_v)
            n_head_kv = n_head
        return cls(
            architecture=architecture,
            n_layer=n_layer,
            n_embd=n_embd,
            context_length=keys.count("context_length"),
            n_head=n_head,
            n_head_kv=n_head_kv,
            d_k=d_k,
            d_v=d_v,
            n_rot=keys.count("rope.dimension_count", d_k),
            kv_lora_rank=kv_lora_rank,
            window=keys.windows(traits, n_layer),
            d_k_window=keys.count("attention.key_length_swa", 0) or None,
            d_v_window=keys.count("attention.value_length_swa", 0) or None,
            n_predictor=n_predictor,
        )


class _Keys:
    """Checked access to one architecture's numbers in the metadata."""

    def __init__(self, metadata, architecture):
        self.metadata = metadata
        self.architecture = architecture

    def _get(self, name, default):
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key, default)
        if value is None:
            raise ValueError(f"metadata {key!r} is missing")
        return key, value

    def count(self, name, default=None):
        key, value = self._get(name, default)
        lowest = 1 if default is None else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"metadata {key!r} is {value!r}, not a count of at least {lowest}")
        self._check_most(name, key, value)
        return value

    @staticmethod
    def _check_most(name, key, value):
        most = MOST.get(_SIZE_OF_KEY.get(name, ""), value)
        if value > most:
            raise ValueError(f"metadata {key!r} is {value}; at most {most} can be read")

    def count_or_per_layer(self, name, n_layer, default=None):
        key, value = self._get(name, default)
        if isinstance(value, int):
            return self.count(name, default)
        if isinstance(value, tuple):
            return value
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise ValueError(f"metadata {key!r} is {value!r}, not a count nor an array of counts")
        self._check_most(name, key, int(value.max(initial=0)))
        if len(value) < n_layer or value.min() < 0:
            raise ValueError(
                f"metadata {key!r} has {len(value)} counts from {value.min(initial=0)}; "
                f"{n_layer} layers need {n_layer} of at least 0"
            )
        return _one_or_all(tuple(value[:n_layer].tolist()))

    def windows(self, traits, n_layer):
        """Keys that each layer sees, 0: all; one number where layers are alike.

        Files name the window, and some the pattern: a period, or for each layer whether it has one.
        """
        window = self.count("attention.sliding_window", traits.window_default)
        key, pattern = self._get("attention.sliding_window_pattern", traits.window_period)
        if traits.ignores_window or not window:
            return 0
        if not traits.window_period:
            raise ValueError(
                f"metadata '{self.architecture}.attention.sliding_window' is {window}: "
                f"which layers of {self.architecture!r} have a window is not modelled here"
            )
        if (
            isinstance(pattern, np.ndarray)
            and pattern.dtype == np.bool_
            and len(pattern) >= n_layer
        ):
            windowed = pattern[:n_layer].tolist()
        elif type(pattern) is int and pattern >= 0:
            windowed = windowed_layers(pattern, n_layer)
        else:
            raise ValueError(
                f"metadata {key!r} is neither a period nor a bool for each of {n_layer} layers"
            )
        return _one_or_all(tuple(window if is_windowed else 0 for is_windowed in windowed))


def _one_or_all(per_layer):
    """One number where all layers have the same."""
    return per_layer[0] if len(set(per_layer)) == 1 else per_layer


@dataclass(frozen=True)
class ModelGeometry:
    """All sizes of a model that `make_gguf` can write. Zero or False: the model has no such part.

    What every file of an architecture has is said in parts.py instead.

    Attributes
    ----------
    mla_form : str
        deepseek2: "split" has attn_k_b and attn_v_b, one matrix a head, as current llama.cpp writes
        and wants them; "fused" the older attn_kv_b; "both" has both, attn_k_b and attn_v_b flattened
        to two axes, as files made for ik_llama.cpp's -mla.
    tokenizer_model, tokenizer_pre : str
        "gpt2" (bytes and merges, `tokenizer_pre` splits the text before) or "llama" (scores).
    window, window_period : int
        Keys that a windowed layer sees; of so many layers all but the last are windowed, where that
        is not the architecture's own pattern (0).
    tied_output : bool
        token_embd serves as output.
    n_ff_expert : int
        0: experts are as wide as `n_ff` (llama).
    fused_experts : bool
        Gate and up of the experts are one tensor.
    n_layer_dense : int
        Leading layers without experts.
    n_predictor : int
        Layers behind the `n_layer` that predict further tokens (NextN).
    """

    name: str
    architecture: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    d_k: int
    d_v: int
    n_rot: int
    n_ff: int
    n_vocab: int
    context_length: int
    rope_freq_base: float
    rms_epsilon: float
    tokenizer_pre: str
    tokenizer_model: str = "gpt2"
    rope_scaling: Yarn | Llama3Scaling | Linear | LongRope | None = None
    window: int = 0
    window_period: int = 0
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_output: bool = False
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    mla_form: str = "split"
    n_expert: int = 0
    n_expert_used: int = 0
    n_expert_shared: int = 0
    n_ff_expert: int = 0
    n_layer_dense: int = 0
    n_expert_group: int = 0
    n_expert_group_used: int = 0
    expert_weights_scale: float = 1.0
    expert_weights_norm: bool = False
    expert_gating: str = "softmax"
    fused_experts: bool = False
    n_predictor: int = 0

    @property
    def d_nope(self) -> int:
        """The part of a key head that RoPE leaves alone (MLA: what is decompressed)."""
        return self.d_k - self.n_rot

    @property
    def attention(self) -> AttentionGeometry:
        mla = self.kv_lora_rank > 0
        period = self.window_period or architecture_of(self.architecture).window_period
        windowed = windowed_layers(period if self.window else 0, self.n_layer)
        return AttentionGeometry(
            architecture=self.architecture,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            context_length=self.context_length,
            n_head=self.n_head,
            n_head_kv=self.n_head if mla else self.n_head_kv,
            d_k=self.d_k,
            d_v=self.d_v,
            n_rot=self.n_rot,
            kv_lora_rank=self.kv_lora_rank if mla else None,
            window=_one_or_all(
                tuple(self.window if is_windowed else 0 for is_windowed in windowed)
            ),
            n_predictor=self.n_predictor,
        )

    def resized(self, **sizes: Any) -> ModelGeometry:
        """A copy with other sizes, checked; names are those of the attributes.

        Sizes that follow from another one follow it unless they are given too: where the heads
        make up the width, `n_embd` and `n_head` follow each other and the size of a head stays,
        or follows where both are given (`_of_whole_heads`); `n_head_kv` keeps its ratio to
        `n_head`, fewer experts than are used are all used, and of fewer layers than were dense the
        last one still has experts.

        Raises
        ------
        ValueError
            The sizes do not make a model; the message names one.
        """
        if not self.kv_lora_rank and self.n_embd == self.n_head * self.d_k:
            sizes = {**self._of_whole_heads(sizes), **sizes}
        if "n_head" in sizes and "n_head_kv" not in sizes:
            sizes["n_head_kv"] = max(1, sizes["n_head"] * self.n_head_kv // self.n_head)
        if "n_expert" in sizes and "n_expert_used" not in sizes:
            sizes["n_expert_used"] = min(self.n_expert_used, sizes["n_expert"])
        if "n_layer" in sizes and "n_layer_dense" not in sizes and self.n_expert:
            sizes["n_layer_dense"] = max(0, min(self.n_layer_dense, sizes["n_layer"] - 1))
        changed = dataclasses.replace(self, **sizes)
        changed.check()
        return changed

    def _of_whole_heads(self, given):
        """The sizes that keep n_embd = n_head d_k, and d_v and n_rot at d_k, beside those that are given.

        None where there are no such whole numbers.
        """
        follow = {}
        n_embd, n_head, d_k = (
            given.get(name, getattr(self, name)) for name in ("n_embd", "n_head", "d_k")
        )
        if min(n_embd, n_head, d_k) < 1:
            return follow  # `check` names the one that was given
        if "n_embd" not in given:
            follow["n_embd"] = n_head * d_k
        elif "n_head" not in given and n_embd % d_k == 0:
            follow["n_head"] = n_embd // d_k
        elif "n_head" in given and "d_k" not in given and n_embd % n_head == 0:
            follow["d_k"] = n_embd // n_head
        d_k = follow.get("d_k", d_k)
        return {
            **{name: d_k for name in ("d_v", "n_rot") if getattr(self, name) == self.d_k},
            **follow,
        }

    def check(self) -> None:
        """Raise ValueError, naming the size, where the sizes do not make a model."""
        mandatory = ("n_layer", "n_embd", "n_head", "n_head_kv", "d_k", "d_v", "n_rot", "n_vocab")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":  # annotations are text here
                lowest = 1 if field.name in mandatory else 0
                if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                    raise ValueError(f"{field.name}: at least {lowest}; got {value!r}")
                if value > MOST.get(field.name, value):
                    raise ValueError(f"{field.name}: at most {MOST[field.name]}; got {value!r}")
        for rule, held in (
            (f"architecture: one of {', '.join(PARTS)}", self.architecture in PARTS),
            (f"mla_form: one of {', '.join(MLA_FORMS)}", self.mla_form in MLA_FORMS),
            (
                f"expert_gating: one of {', '.join(EXPERT_GATING)}",
                self.expert_gating in EXPERT_GATING,
            ),
            (
                f"tokenizer_model: one of {', '.join(TOKENIZERS)}",
                self.tokenizer_model in TOKENIZERS,
            ),
            ("n_head: a multiple of n_head_kv", self.n_head % self.n_head_kv == 0),
            ("n_rot: an even number", self.n_rot % 2 == 0),
            ("n_rot: at most d_k", self.n_rot <= self.d_k),
            ("n_expert_used: at most n_expert", self.n_expert_used <= self.n_expert),
            (
                "n_expert: a multiple of n_expert_group, and two or more a group",
                self.n_expert_group <= 1
                or (
                    self.n_expert % self.n_expert_group == 0
                    and self.n_expert >= 2 * self.n_expert_group
                ),
            ),
            (
                "n_expert_group_used: at most n_expert_group",
                self.n_expert_group_used <= self.n_expert_group,
            ),
        ):
            _require(held, rule, self)
        self._check_parts()

    def _check_parts(self):
        """What the architecture must have, and what it has not."""
        parts = PARTS[self.architecture]
        for name in parts.none_of:
            _require(not getattr(self, name), f"{name}: {self.architecture} has none", self)
        has_experts = parts.has_experts and (self.n_expert > 0 or not parts.may_lack_experts)
        has_experts = has_experts and self.n_layer > self.n_layer_dense
        has_dense = not has_experts or self.n_layer_dense > 0 or not self.n_ff_expert
        _require(self.n_ff > 0 or not has_dense, "n_ff: at least 1", self)
        if has_experts:
            needed = (
                ("n_expert_used",) if parts.may_lack_experts else ("n_expert_used", "n_ff_expert")
            )
            for size in needed:
                rule = f"{size}: at least 1 where layers have experts"
                _require(getattr(self, size) > 0, rule, self)
            _require(
                self.n_expert_group <= 1 or self.n_expert_group_used > 0,
                "n_expert_group_used: at least 1 where there are groups",
                self,
            )
        if parts.is_latent:
            all_heads = self.n_head_kv == self.n_head
            _require(self.kv_lora_rank > 0, "kv_lora_rank: deepseek2 needs at least 1", self)
            _require(self.d_nope > 0, "d_k: deepseek2 needs more than n_rot", self)
            _require(
                all_heads, "n_head_kv: deepseek2 needs n_head (all heads share a latent)", self
            )
        if parts.has_window:
            _require(self.window > 0, f"window: {self.architecture} needs at least 1", self)


def _require(held, rule, geometry):
    if not held:
        raise ValueError(f"{rule}; got {getattr(geometry, rule.partition(':')[0])!r}")


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension.

    `log_multiplier` is DeepSeek's: what the attention's scale grows by with ln(factor); 0: the file does not
    say it, and RoPE's magnitude grows instead.
    """

    factor: float
    original_context_length: int
    log_multiplier: float = 0.0


@dataclass(frozen=True)
class Linear:
    """Positions divided by a factor (Gemma 3: in the layers without a window)."""

    factor: float


@dataclass(frozen=True)
class LongRope:
    """The context extension of Phi 3: divisors of the frequencies, others beyond the original length.

    Real files have fitted divisors; these grow from 1 to `factor` in a smooth curve.
    """

    factor: float
    original_context_length: int

    @property
    def attn_factor(self) -> float:
        """What RoPE's cosines and sines are multiplied by, as Phi 3's config computes it."""
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context_length))

    def divisors(self, n_rot: int, long: bool) -> np.ndarray:
        """float32 (n_rot / 2,): of the long context, or of the short one, which are close to 1."""
        most = self.factor if long else 1.1
        return (most ** (np.arange(n_rot // 2) / max(1, n_rot // 2 - 1)) ** 2).astype(np.float32)


@dataclass(frozen=True)
class Llama3Scaling:
    """The context extension of Llama 3.1: one divisor per frequency, kept as a tensor."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_context_length: int = 8192

    def divisors(self, n_rot: int, freq_base: float) -> np.ndarray:
        """float32 (n_rot / 2,): what each RoPE frequency is divided by."""
        wavelength = 2 * math.pi * freq_base ** (np.arange(0, n_rot, 2) / n_rot)
        turns = self.original_context_length / wavelength
        smooth = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (1 / ((1 - smooth) / self.factor + smooth)).astype(np.float32)
