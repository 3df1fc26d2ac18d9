"""Sizes of models small enough to be written in a test."""

from quant.models.named_geometries import named_geometry

# Small enough for a test, odd enough to meet the fallbacks: rows of 32, 48, 64, 96 and 320 columns.
SMALL = {
    "deepseek-v2-lite": dict(
        n_layer=2, n_embd=256, n_head=3, d_k=48, d_v=32, n_rot=16, kv_lora_rank=64, n_ff=320,
        n_ff_expert=96, n_expert=4, n_vocab=300,
    ),
    "deepseek-r1": dict(
        n_layer=3, n_layer_dense=2, n_embd=256, n_head=4, d_k=80, d_v=64, n_rot=16, q_lora_rank=128,
        kv_lora_rank=256, n_ff=512, n_ff_expert=64, n_expert=4, n_vocab=300,
    ),
    "llama-8b": dict(n_layer=2, n_embd=256, n_head=8, d_k=32, d_v=32, n_rot=32, n_ff=512, n_vocab=300),
    "mixtral-8x7b": dict(n_layer=2, n_embd=128, n_head=4, d_k=32, n_ff=96, n_expert=4, n_vocab=300),
    "qwen2-7b": dict(n_layer=2, n_embd=128, n_head=4, d_k=32, n_head_kv=2, n_ff=96, n_vocab=300),
    "qwen3-8b": dict(n_layer=2, n_embd=128, n_head=4, d_k=32, n_ff=96, n_vocab=300),
    "qwen3-30b-a3b": dict(
        n_layer=2, n_embd=128, n_head=4, n_head_kv=1, d_k=32, d_v=32, n_rot=32, n_ff_expert=96, n_expert=4, n_vocab=300
    ),
    "gemma-2-9b": dict(n_layer=2, n_embd=128, n_head=4, d_k=32, d_v=32, n_rot=32, n_ff=96, n_vocab=300),
    "gemma-3-4b": dict(n_layer=7, n_embd=128, n_head=4, d_k=32, d_v=32, n_rot=32, n_ff=96, n_vocab=300),
    "phi-3-mini": dict(n_layer=2, n_embd=128, n_head=4, d_k=32, n_ff=96, n_vocab=300),
    "gpt-oss-20b": dict(
        n_layer=2, n_embd=128, n_head=8, d_k=32, d_v=32, n_rot=32, n_ff_expert=96, n_expert=4, n_vocab=300
    ),
    "glm-4.5-air": dict(
        n_layer=2, n_embd=128, n_head=12, d_k=32, d_v=32, n_rot=16, n_ff=160, n_ff_expert=96, n_expert=4, n_vocab=300
    ),
    "glm-4.7-flash": dict(
        n_layer=2, n_embd=128, n_head=4, d_k=48, d_v=48, n_rot=16, q_lora_rank=64, kv_lora_rank=64, n_ff=160,
        n_ff_expert=96, n_expert=4, n_vocab=300,
    ),
}  # fmt: skip


def small(name, **sizes):
    return named_geometry(name).resized(**{**SMALL[name], **sizes})
