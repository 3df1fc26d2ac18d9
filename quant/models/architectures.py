"""What an architecture keeps in its K/V cache, and how its pass goes, as rows of traits: the file says the rest.

Only architectures whose cache is known are listed, and `Pass` is there where whole passes run. Another one, or a key
that changes the cache or the pass in a way that is not modelled, is refused by name instead of being taken for the
nearest thing. Biases, norms of q and k, post-norms, sinks, fused and tied matrices are no traits: tensors tell them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


HEADS, LATENT = "heads", "latent"


class Pass(NamedTuple):
    """How the layers of an architecture compute, beyond what keys and tensors of its files say.

    Attributes
    ----------
    pairs : str
        Dimensions that RoPE turns together, as `lowlevel.ops.rope` has it: "adjacent" or "halves".
    activation : str
        "swiglu", "geglu" or "clamped_swiglu" of `lowlevel.ops`.
    scaled_embedding : bool
        Embeddings are multiplied by sqrt(n_embd).
    window_freq_base : float
        RoPE's base in layers with a window, which are not stretched then; 0: that of all layers.
    gating : str
        Of `lowlevel.ops.GATINGS`, where the file does not say it.
    norm_experts : bool
        Weights of the chosen experts are normalised, where the file does not say it.
    head_scale_layers : int
        Models of so many layers scale scores by 1 / sqrt(n_embd / n_head), not by the head's size.
    """

    pairs: str
    activation: str = "swiglu"
    scaled_embedding: bool = False
    window_freq_base: float = 0.0
    gating: str = "softmax"
    norm_experts: bool = False
    head_scale_layers: int = 0


class Architecture(NamedTuple):
    """One architecture's traits.

    Attributes
    ----------
    cache : str
        "heads": K and V of every K/V head; "latent": one row of latent and RoPE part for all heads.
    window_period : int
        Of so many layers all but the last see a window of keys only, where the file names a window
        and no pattern of its own; 0: no layer does.
    window_default : int
        Keys of the window where the file does not say it.
    ignores_window : bool
        Files may name a window, which llama.cpp and ik_llama.cpp do not apply.
    pass_ : Pass or None
        None: its K/V cache can be planned, its pass is not modelled.
    """

    cache: str = HEADS
    window_period: int = 0
    window_default: int = 0
    ignores_window: bool = False
    pass_: Pass | None = None


_PLAIN = Architecture()
# The patterns of windowed layers are those of llama.cpp's src/models at 0c1e57098: no file of these
# architectures needs to say them.
ARCHITECTURES = {
    **dict.fromkeys(
        (
            "arcee", "baichuan", "bailingmoe", "bloom", "codeshell", "command-r", "dbrx",
            "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "gemma", "glm4",
            "gpt2", "gptneox", "granite", "granitemoe", "grok", "hunyuan-dense",
            "hunyuan-moe", "internlm2", "jais", "minicpm", "mistral3", "mpt",
            "nemotron", "olmo", "olmoe", "orion", "phi2", "qwen", "qwen2moe", "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2",
            "xverse",
        ),
        _PLAIN,
    ),
    "llama": Architecture(pass_=Pass("adjacent", norm_experts=True)),
    "qwen2": Architecture(pass_=Pass("halves")),
    "qwen3": Architecture(pass_=Pass("halves")),
    "qwen3moe": Architecture(pass_=Pass("halves", norm_experts=True)),
    "glm4moe": Architecture(pass_=Pass("halves", gating="sigmoid")),
    "minimax-m2": Architecture(pass_=Pass("halves", gating="sigmoid", norm_experts=True)),
    "deepseek2": Architecture(cache=LATENT, pass_=Pass("adjacent")),
    # These have a kv_lora_rank as well, but decompress before they cache.
    "minicpm3": _PLAIN,
    "plm": _PLAIN,
    "phi3": Architecture(ignores_window=True, pass_=Pass("halves")),
    "gemma2": Architecture(
        window_period=2,
        window_default=4096,
        pass_=Pass("halves", "geglu", scaled_embedding=True, head_scale_layers=46),
    ),
    "gemma3": Architecture(
        window_period=6,
        pass_=Pass(
            "halves", "geglu", scaled_embedding=True, window_freq_base=10000.0, head_scale_layers=62
        ),
    ),
    "gpt-oss": Architecture(
        window_period=2, pass_=Pass("halves", "clamped_swiglu", gating="softmax_selected")
    ),
    "cohere2": Architecture(window_period=4),
}  # fmt: skip

_GATED = "it has recurrent layers, whose state is no K/V cache"
_INDEXED = "its indexer keeps a cache of its own"
REFUSED = {
    **dict.fromkeys(
        (
            "falcon-h1", "granitehybrid", "jamba", "kimi-linear", "lfm2", "lfm2moe", "mamba",
            "mamba2", "nemotron_h", "nemotron_h_moe", "plamo2", "qwen35", "qwen35moe", "qwen3next",
            "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7",
        ),
        _GATED,
    ),
    **dict.fromkeys(("deepseek32", "deepseek4", "glm-dsa"), _INDEXED),
    **dict.fromkeys(("gemma3n", "gemma4"), "some of its layers share one cache"),
    "llama4": "its layers attend by chunks",
    **dict.fromkeys(
        ("bert", "nomic-bert", "jina-bert-v2", "modern-bert", "t5encoder"), "it has no K/V cache"
    ),
}  # fmt: skip


class CacheKey(NamedTuple):
    """A metadata key that changes what is cached, in a way that is not modelled: where it is not 0."""

    name: str
    why: str


REFUSED_KEYS = (
    CacheKey("full_attention_interval", "only every so-manieth layer has a K/V cache"),
    CacheKey("attention.shared_kv_layers", "some layers share one cache"),
    CacheKey("attention.chunk_size", "layers attend by chunks"),
    CacheKey("attention.indexer.head_count", _INDEXED),
    CacheKey("attention.indexer.key_length", _INDEXED),
    CacheKey("attention.indexer.top_k", _INDEXED),
    CacheKey("attention.compress_ratios", "some layers cache compressed keys"),
    CacheKey("ssm.state_size", _GATED),
    CacheKey("ssm.inner_size", _GATED),
    CacheKey("wkv.head_size", _GATED),
    CacheKey("shortconv.l_cache", _GATED),
)


def architecture_of(name: str) -> Architecture:
    """The `Architecture` of a name as files have it in ``general.architecture``.

    Raises
    ------
    ValueError
        It is not modelled; the message names it and, where it is known, says why.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    why = REFUSED.get(name, f"known are {', '.join(sorted(ARCHITECTURES))}")
    raise ValueError(f"architecture {name!r}: its K/V cache is not modelled here; {why}")


def refuse_unmodelled_keys(metadata: Mapping[str, Any], architecture: str) -> None:
    """Raise ValueError, naming the key, where a file's cache is of a form that is not modelled."""
    for key in REFUSED_KEYS:
        full_name = f"{architecture}.{key.name}"
        value = metadata.get(full_name, 0)
        if value if isinstance(value, (int, float, str)) else len(value):
            raise ValueError(
                f"metadata {full_name!r}: a K/V cache that is not modelled here; {key.why}"
            )


def windowed_layers(period: int, n_layer: int) -> tuple[bool, ...]:
    """For each layer whether it sees a window only: all but the last of each `period`.

    Parameters
    ----------
    period : int
        0 or 1: none does.
    n_layer : int

    Returns
    -------
    tuple of bool
    """
    return tuple(period > 1 and layer % period < period - 1 for layer in range(n_layer))
