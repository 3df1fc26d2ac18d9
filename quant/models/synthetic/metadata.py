"""The metadata of a model file of given sizes, with the smallest tokenizer llama.cpp accepts."""

from __future__ import annotations

import itertools
import string
from typing import TYPE_CHECKING

from gguf import GGUFValueType, LlamaFileType, TokenType

from ..geometry import EXPERT_GATING, Linear, Llama3Scaling, LongRope, Yarn
from ..parts import PARTS
from ..tokenizer.byte_letters import BYTE_LETTERS
from ..tokenizer.vocabulary import SPACE, byte_token_texts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from quant.models.geometry import ModelGeometry


TEXT = GGUFValueType.STRING
U32 = GGUFValueType.UINT32
F32 = GGUFValueType.FLOAT32
BOOL = GGUFValueType.BOOL
ARRAY = GGUFValueType.ARRAY
QUANTIZATION_VERSION = 2
_DEEPSEEK_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
# tokenizer.ggml.pre -> the first tokens, which begin, end and fill up a text
_SPECIAL = {
    "deepseek-llm": _DEEPSEEK_SPECIAL,
    "deepseek-v3": _DEEPSEEK_SPECIAL,
    "llama-bpe": ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    "kimi-k2": ("[BOS]", "[EOS]", "[PAD]"),
    "qwen2": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "glm4": ("[gMASK]", "<|endoftext|>", "<|user|>"),
    "gpt-4o": ("<|startoftext|>", "<|return|>", "<|endoftext|>"),
    "default": ("<s>", "</s>", "<|endoftext|>"),
}
BOS, EOS, PAD = 0, 1, 2
N_FIXED = 256 + 3  # one token a byte, and the special ones
MIN_VOCAB = N_FIXED + 1  # llama.cpp refuses a BPE vocabulary without merges
WORD_LENGTHS = range(2, 5)
MAX_VOCAB = N_FIXED + sum(len(string.ascii_lowercase) ** length for length in WORD_LENGTHS)


def file_type(name: str) -> LlamaFileType | int:
    """The gguf.LlamaFileType of a file of a type or mix; llama.cpp's number of one that the gguf package does not know."""
    if name == "Q2_0":
        return 41
    names = (f"ALL_{name}", f"MOSTLY_{name}", f"MOSTLY_{name}_S", f"MOSTLY_{name}_MOE")
    return next(LlamaFileType[name] for name in names if name in LlamaFileType.__members__)


def model_metadata(geometry: ModelGeometry, file_type_name: str) -> list[tuple[str, Any, Any]]:
    """All metadata of a model file: a list of (key, gguf.GGUFValueType, value).

    Parameters
    ----------
    geometry : ModelGeometry
    file_type_name : str
        The type or mix that general.file_type is named after.

    Raises
    ------
    ValueError
        A vocabulary too small for one token a byte and three special ones, or too big.
    """
    architecture = geometry.architecture
    sizes = [(f"{architecture}.{key}", kind, value) for key, kind, value in model_sizes(geometry)]
    return [
        ("general.type", TEXT, "model"),
        ("general.name", TEXT, f"{geometry.name} with random weights"),
        *sizes,
        *tokenizer(geometry),
        ("general.quantization_version", U32, QUANTIZATION_VERSION),
        ("general.file_type", U32, int(file_type(file_type_name))),
    ]


def model_sizes(geometry: ModelGeometry) -> Iterator[tuple[str, Any, Any]]:
    """The keys of `model_metadata` that say sizes and traits, without the architecture before them."""
    parts = PARTS[geometry.architecture]
    yield "block_count", U32, geometry.n_layer + geometry.n_predictor
    yield "context_length", U32, geometry.context_length
    yield "embedding_length", U32, geometry.n_embd
    yield "feed_forward_length", U32, geometry.n_ff
    yield "vocab_size", U32, geometry.n_vocab
    yield "attention.head_count", U32, geometry.n_head
    yield "attention.layer_norm_rms_epsilon", F32, geometry.rms_epsilon
    yield "rope.dimension_count", U32, geometry.n_rot
    yield "rope.freq_base", F32, geometry.rope_freq_base
    yield from _rope_scaling(geometry.rope_scaling)
    if parts.is_latent:
        yield from _mla(geometry)
    else:
        yield "attention.head_count_kv", U32, geometry.n_head_kv
        yield "attention.key_length", U32, geometry.d_k
        yield "attention.value_length", U32, geometry.d_v
    yield from _where_there(
        ("attention.sliding_window", U32, geometry.window),
        ("attention.sliding_window_pattern", U32, geometry.window_period),
        ("attn_logit_softcapping", F32, geometry.attn_softcap),
        ("final_logit_softcapping", F32, geometry.final_softcap),
        ("nextn_predict_layers", U32, geometry.n_predictor),
    )
    if parts.says_routing:
        yield from _routing(geometry)
    elif geometry.n_expert:
        yield "expert_count", U32, geometry.n_expert
        yield "expert_used_count", U32, geometry.n_expert_used
        yield from _where_there(("expert_feed_forward_length", U32, geometry.n_ff_expert))


def _where_there(*keys):
    """Those whose value is not 0."""
    return (key for key in keys if key[2])


def _rope_scaling(scaling):
    if isinstance(scaling, Yarn):
        yield "rope.scaling.type", TEXT, "yarn"
        yield "rope.scaling.factor", F32, scaling.factor
        yield "rope.scaling.original_context_length", U32, scaling.original_context_length
        yield from _where_there(("rope.scaling.yarn_log_multiplier", F32, scaling.log_multiplier))
    elif isinstance(scaling, Linear):
        yield "rope.scaling.type", TEXT, "linear"
        yield "rope.scaling.factor", F32, scaling.factor
    elif isinstance(scaling, LongRope):
        yield "rope.scaling.original_context_length", U32, scaling.original_context_length
        yield "rope.scaling.attn_factor", F32, scaling.attn_factor
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


def _routing(geometry):
    yield "leading_dense_block_count", U32, geometry.n_layer_dense
    yield "expert_count", U32, geometry.n_expert
    yield "expert_used_count", U32, geometry.n_expert_used
    yield "expert_shared_count", U32, geometry.n_expert_shared
    yield "expert_feed_forward_length", U32, geometry.n_ff_expert
    yield "expert_weights_scale", F32, geometry.expert_weights_scale
    yield "expert_weights_norm", BOOL, geometry.expert_weights_norm
    yield "expert_gating_func", U32, EXPERT_GATING[geometry.expert_gating]
    yield from _where_there(
        ("expert_group_count", U32, geometry.n_expert_group),
        ("expert_group_used_count", U32, geometry.n_expert_group_used),
    )


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
    """A tokenizer of exactly n_vocab tokens, of the geometry's kind. (Same list as `model_metadata`.)

    Three special ones, the 256 bytes, and words of small letters.
    """
    check_vocab(geometry)
    special = _SPECIAL[geometry.tokenizer_pre]
    tokens, types, rest = _TOKENIZERS[geometry.tokenizer_model](geometry.n_vocab - N_FIXED)
    return [
        ("tokenizer.ggml.model", TEXT, geometry.tokenizer_model),
        ("tokenizer.ggml.pre", TEXT, geometry.tokenizer_pre),
        ("tokenizer.ggml.tokens", ARRAY, [*special, *tokens]),
        ("tokenizer.ggml.token_type", ARRAY, [int(TokenType.CONTROL)] * len(special) + types),
        *rest,
        ("tokenizer.ggml.bos_token_id", U32, BOS),
        ("tokenizer.ggml.eos_token_id", U32, EOS),
        ("tokenizer.ggml.padding_token_id", U32, PAD),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_eos_token", BOOL, False),
    ]


def _by_merges(n_words):
    """Byte-level BPE, each word with the merge that makes it: (tokens, types, further metadata)."""
    words = list(itertools.islice(_words(), n_words))
    merges = [f"{word[:-1]} {word[-1]}" for word in words]
    tokens = [*BYTE_LETTERS, *words]
    types = [int(TokenType.NORMAL)] * len(tokens)
    return tokens, types, [("tokenizer.ggml.merges", ARRAY, merges)]


def _by_scores(n_words):
    """SentencePiece: bytes for what no word covers, earlier words before later ones."""
    words = itertools.chain([SPACE], string.ascii_lowercase, _words())
    words = list(itertools.islice(words, n_words - 1))
    tokens = ["<unk>", *byte_token_texts(), *words]
    types = [int(TokenType.UNKNOWN)] + [int(TokenType.BYTE)] * 256
    types += [int(TokenType.NORMAL)] * len(words)
    scores = [0.0] * (N_FIXED + 1) + [-float(rank) for rank in range(len(words))]
    more = [
        ("tokenizer.ggml.scores", ARRAY, scores),
        ("tokenizer.ggml.unknown_token_id", U32, PAD + 1),
    ]
    return tokens, types, more


_TOKENIZERS = {"gpt2": _by_merges, "llama": _by_scores}


def _words():
    """Words of two letters and more, after all their beginnings."""
    for length in WORD_LENGTHS:
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))
