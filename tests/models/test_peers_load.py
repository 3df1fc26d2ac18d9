"""What llama.cpp and ik_llama.cpp load of what make_gguf writes: the rules of load_elsewhere.py, held against them."""

import dataclasses

import pytest
from peers import IK, LLAMA_CPP, need, peer_loads
from small_files import small_geometry

from quant.models.synthetic.load_elsewhere import load_failures
from quant.models.synthetic.make_gguf import make_gguf

# A row is a small model and what is different. Left out is what makes an engine abort: latents that ik_llama.cpp does
# not know, more experts than it holds, RoPE over parts of heads in qwen models.
ROWS = [
    ("llama", dict()),
    ("llama", dict(n_rot=32)),
    ("llama", dict(n_embd=512)),
    ("qwen2", dict(d_k=128, d_v=128, n_rot=128)),
    ("qwen2", dict(d_v=32)),
    ("qwen2", dict(qkv_bias=False)),
    ("qwen3", dict(d_k=128, d_v=128, n_rot=128)),
    ("qwen3", dict(qk_norm=False)),
    ("qwen3moe", dict(d_v=32)),
    ("gemma2", dict(n_rot=32, tied_output=False)),
    ("gemma3", dict(n_rot=32, tied_output=False, final_softcap=30.0)),
    ("gemma3", dict(qk_norm=False)),
    ("phi3", dict()),
    ("phi3", dict(n_rot=32)),
    ("phi3", dict(tied_output=True)),
    ("phi3", dict(d_k=128, d_v=128, n_rot=128)),
    ("phi3", dict(window=0)),
    ("gpt-oss", dict(qkv_bias=False, window_period=3)),
    ("gpt-oss", dict(d_v=32)),
    ("glm4moe", dict(qkv_bias=False)),
    ("glm4moe", dict(expert_gating="softmax")),
    ("glm4moe", dict(n_expert_shared=0, tied_output=True)),
    ("glm4moe", dict(fused_experts=True)),
    ("deepseek-lite", dict()),
    ("deepseek-lite-27", dict(n_layer=26)),
    ("deepseek-r1", dict(tied_output=True)),
    ("deepseek-r1", dict(n_predictor=1)),
    ("deepseek-r1", dict(fused_experts=True)),
    ("deepseek-r1", dict(n_expert_shared=0)),
    ("deepseek-r1", dict(n_layer=26, n_layer_dense=26, n_ff=256, n_expert_shared=0)),
    ("deepseek-r1-both", dict()),
]
# What only a run shows, or the engine's end.
ONLY_AT_RUN = {IK: ("gemma2",), LLAMA_CPP: ()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(path, geometry) of each row."""
    folder = tmp_path_factory.mktemp("loads")
    made = []
    for number, (name, changes) in enumerate(ROWS):
        geometry = dataclasses.replace(small_geometry(name), **changes)
        made.append((folder / f"{number}.gguf", geometry))
        make_gguf(*made[-1], "Q8_0", n_threads=1)
    return made


@pytest.mark.parametrize("engine", [LLAMA_CPP, IK])
def test_what_is_said_to_load_does(files, engine):
    need(engine)
    rows = [row for row in files if row[1].architecture not in ONLY_AT_RUN[engine]]
    said = [all(failure.engine != engine for failure in load_failures(row[1])) for row in rows]
    found = peer_loads(engine, [path for path, _ in rows])
    wrong = [row for row, a, b in zip(rows, found, said, strict=True) if a != b]
    assert not wrong and set(said) == {True, False}
