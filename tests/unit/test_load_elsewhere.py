"""What llama.cpp and ik_llama.cpp load of what make_gguf writes: the rules. (tests/models/test_peers_load.py asks them.)"""

import re

import pytest

from quant.models.named_geometries import GEOMETRIES, named_geometry
from quant.models.synthetic.load_elsewhere import load_failures


@pytest.mark.parametrize(
    ("name", "sizes", "engines", "reason"),
    [
        ("llama-8b", dict(), [], ""),
        ("llama-8b", dict(n_embd=512, n_head=8), [], ""),
        ("llama-8b", dict(n_embd=512, n_head=8, d_k=128), ["ik"], "n_embd / n_head = 64; here it is 128"),
        ("llama-8b", dict(n_rot=64), ["lcp", "ik"], r"whole heads \(d_k 128\) there, not 64"),
        ("llama-8b", dict(n_layer=513), ["lcp", "ik"], "513 layers; 512"),
        ("deepseek-v2-lite", dict(), [], ""),
        ("deepseek-v2-lite", dict(n_layer=26), [], ""),
        ("deepseek-v2-lite", dict(n_layer=2), ["ik"], "with 2 it looks for attn_q_a"),
        ("deepseek-r1", dict(n_layer=2), [], ""),
        ("deepseek-r1", dict(n_layer=2, mla_form="fused"), [], ""),
        ("deepseek-r1", dict(n_layer=2, mla_form="both"), ["lcp"], "more tensors"),
        ("deepseek-r1", dict(n_layer=2, n_head=6), ["ik"], "512, rope 64 and heads in fours, not 512, 64 and 6"),
        ("deepseek-r1", dict(n_layer=2, kv_lora_rank=256), ["ik"], "kv_lora 512.*not 256"),
        ("deepseek-r1", dict(n_layer=2, kv_lora_rank=256, mla_form="fused"), [], ""),
        ("deepseek-r1", dict(n_layer=2, n_head=1, mla_form="fused"), ["ik"], "one K/V head"),
        ("deepseek-r1", dict(n_layer=27), ["lcp", "ik"], "attn_q is looked for"),
        ("deepseek-r1", dict(n_layer=48, n_vocab=128256), ["lcp"], "48 layers"),
        ("deepseek-r1", dict(n_expert_shared=0), ["lcp", "ik"], "ffn_gate_shexp"),
        ("deepseek-r1", dict(n_expert=513), ["lcp", "ik"], "513 experts; 512"),
        ("deepseek-r1", dict(n_expert=0, n_layer_dense=61, n_expert_shared=0), [], ""),
        ("qwen2-7b", dict(qkv_bias=False), ["ik"], "attn_q.bias"),
        ("qwen2-7b", dict(n_head=14, n_embd=3584, d_k=128, d_v=128, n_rot=128), ["lcp", "ik"], "14 heads of 128 must make up the width 3584"),
        ("qwen3-8b", dict(d_v=64), ["lcp", "ik"], "d_k 128 and d_v 64"),
        ("gemma-3-4b", dict(n_layer=5), ["ik"], "of 5 layers none"),
        ("phi-3-mini", dict(window=0), ["ik"], "sliding_window"),
        ("glm-4.5-air", dict(fused_experts=True), ["lcp"], "ffn_gate_exps"),
    ],
)  # fmt: skip
def test_what_others_will_not_load(name, sizes, engines, reason):
    found = load_failures(named_geometry(name).resized(**sizes))
    names = {"lcp": "llama.cpp", "ik": "ik_llama.cpp"}
    assert [failure.engine for failure in found] == [names[engine] for engine in engines]
    assert all(re.search(reason, failure.reason) for failure in found)
    both = load_failures(named_geometry(name), only_attention=True)
    assert [failure.engine for failure in both] == list(names.values())


def test_both_load_every_named_model():
    failures = [(name, *f) for name in GEOMETRIES for f in load_failures(named_geometry(name))]
    assert [(name, engine) for name, engine, _ in failures] == [("gemma-2-9b", "ik_llama.cpp")]
