"""The metadata of a model file of given sizes, with the smallest tokenizer llama.cpp accepts."""

from __future__ import annotations

import itertools
import string
from typing import TYPE_CHECKING

from gguf import GGUFValueType, LlamaFileType, TokenType

from ..geometry import EXPERT_GATING, Llama3Scaling, Yarn

if TYPE_CHECKING:
    from typing import Any

    from gguf import GGMLQuantizationType

    from quant.models.geometry import ModelGeometry


TEXT = GGUFValueType.STRING
U32 = GGUFValueType.UINT32
F32 = GGUFValueType.FLOAT32
BOOL = GGUFValueType.BOOL
ARRAY = GGUFValueType.ARRAY
QUANTIZATION_VERSION = 2
BOS, EOS, PAD = 0, 1, 2
_DEEPSEEK_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
_LLAMA_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>")
_SPECIAL = {"deepseek2": _DEEPSEEK_SPECIAL, "llama": _LLAMA_SPECIAL}
N_FIXED = 256 + 3  # one token a byte, and the special ones
MIN_VOCAB = N_FIXED + 1  # llama.cpp refuses a BPE vocabulary without merges
WORD_LENGTHS = range(2, 5)
MAX_VOCAB = N_FIXED + sum(len(string.ascii_lowercase) ** length for length in WORD_LENGTHS)


def file_type(qtype: GGMLQuantizationType) -> LlamaFileType:
    """The gguf.LlamaFileType of a file whose bulk is of a type: where mixes have sizes, the small one's."""
    names = (f"ALL_{qtype.name}", f"MOSTLY_{qtype.name}", f"MOSTLY_{qtype.name}_S")
    return next(LlamaFileType[name] for name in names if name in LlamaFileType.__members__)


def model_metadata(
    geometry: ModelGeometry, qtype: GGMLQuantizationType
) -> list[tuple[str, Any, Any]]:
    """All metadata of a model file: a list of (key, gguf.GGUFValueType, value).

    Parameters
    ----------
    geometry : ModelGeometry
    qtype : gguf.GGMLQuantizationType
        The bulk's type, for general.file_type.

    Raises
    ------
    ValueError
        A vocabulary too small for one token a byte and three special ones, or too big.
    """
    architecture = geometry.architecture
    sizes = [(f"{architecture}.{key}", kind, value) for key, kind, value in _sizes(geometry)]
    return [
        ("general.type", TEXT, "model"),
        ("general.name", TEXT, f"{geometry.name} with random weights"),
        *sizes,
        *tokenizer(geometry),
        ("general.quantization_version", U32, QUANTIZATION_VERSION),
        ("general.file_type", U32, int(file_type(qtype))),
    ]


def _sizes(geometry):
    yield "block_count", U32, geometry.n_layer
    yield "context_length", U32, geometry.context_length
    yield "embedding_length", U32, geometry.n_embd
    yield "feed_forward_length", U32, geometry.n_ff
    yield "vocab_size", U32, geometry.n_vocab
    yield "attention.head_count", U32, geometry.n_head
    yield "attention.layer_norm_rms_epsilon", F32, geometry.rms_epsilon
    yield "rope.dimension_count", U32, geometry.n_rot
    yield "rope.freq_base", F32, geometry.rope_freq_base
    yield from _rope_scaling(geometry.rope_scaling)
    if geometry.kv_lora_rank:
        yield from _mla(geometry)
        yield from _experts(geometry)
    else:
        yield "attention.head_count_kv", U32, geometry.n_head_kv
        yield "attention.key_length", U32, geometry.d_k
        yield "attention.value_length", U32, geometry.d_v


def _rope_scaling(scaling):
    if isinstance(scaling, Yarn):
        yield "rope.scaling.type", TEXT, "yarn"
        yield "rope.scaling.factor", F32, scaling.factor
        yield "rope.scaling.original_context_length", U32, scaling.original_context_length
        yield "rope.scaling.yarn_log_multiplier", F32, scaling.log_multiplier
    elif scaling is not None:
        assert isinstance(scaling, Llama3Scaling)  # it is a tensor of the file, no metadata


def _mla(geometry):
    # llama.cpp knows by the number of layers (27) that V2-Lite has none; with fewer it wants the 0
    yield "attention.q_lora_rank", U32, geometry.q_lora_rank
    yield "attention.kv_lora_rank", U32, geometry.kv_lora_rank
    if geometry.mla_form == "split":  # the cache is one absorbed head
        yield "attention.head_count_kv", U32, 1
        yield "attention.key_length", U32, geometry.kv_lora_rank + geometry.n_rot
        yield "attention.value_length", U32, geometry.kv_lora_rank
        yield "attention.key_length_mla", U32, geometry.d_k
        yield "attention.value_length_mla", U32, geometry.d_v
    else:
        yield "attention.head_count_kv", U32, geometry.n_head_kv
        yield "attention.key_length", U32, geometry.d_k
        yield "attention.value_length", U32, geometry.d_v


def _experts(geometry):
    yield "leading_dense_block_count", U32, geometry.n_layer_dense
    yield "expert_count", U32, geometry.n_expert
    yield "expert_used_count", U32, geometry.n_expert_used
    yield "expert_shared_count", U32, geometry.n_expert_shared
    yield "expert_feed_forward_length", U32, geometry.n_ff_expert
    yield "expert_weights_scale", F32, geometry.expert_weights_scale
    yield "expert_weights_norm", BOOL, geometry.expert_weights_norm
    yield "expert_gating_func", U32, EXPERT_GATING[geometry.expert_gating]


def check_vocab(geometry: ModelGeometry) -> None:
    """Raise ValueError unless the vocabulary holds what every tokenizer of these files does."""
    if geometry.n_vocab < MIN_VOCAB:
        raise ValueError(
            f"n_vocab: at least {MIN_VOCAB} (256 bytes, 3 special tokens, 1 word); "
            f"got {geometry.n_vocab}"
        )
    if geometry.n_vocab > MAX_VOCAB:
        raise ValueError(f"n_vocab: at most {MAX_VOCAB}; got {geometry.n_vocab}")


def tokenizer(geometry: ModelGeometry) -> list[tuple[str, Any, Any]]:
    """A byte-level BPE tokenizer of exactly n_vocab tokens: three special ones, the 256 bytes, and
    words of small letters, each with the merge that makes it. (Same list as `model_metadata`.)"""
    check_vocab(geometry)
    n_words = geometry.n_vocab - N_FIXED
    words = list(itertools.islice(_words(), n_words))
    special = _SPECIAL[geometry.architecture]
    tokens = [*special, *_byte_letters(), *words]
    types = [int(TokenType.CONTROL)] * len(special)
    types += [int(TokenType.NORMAL)] * (len(tokens) - len(special))
    return [
        ("tokenizer.ggml.model", TEXT, "gpt2"),
        ("tokenizer.ggml.pre", TEXT, geometry.tokenizer_pre),
        ("tokenizer.ggml.tokens", ARRAY, tokens),
        ("tokenizer.ggml.token_type", ARRAY, types),
        ("tokenizer.ggml.merges", ARRAY, [f"{word[:-1]} {word[-1]}" for word in words]),
        ("tokenizer.ggml.bos_token_id", U32, BOS),
        ("tokenizer.ggml.eos_token_id", U32, EOS),
        ("tokenizer.ggml.padding_token_id", U32, PAD),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_eos_token", BOOL, False),
    ]


def _words():
    """Words of two letters and more, after all their beginnings."""
    for length in WORD_LENGTHS:
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _byte_letters():
    """The letter that stands for each byte in GPT-2's byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_ins = itertools.count(0x100)
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
