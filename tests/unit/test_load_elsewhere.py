"""What llama.cpp and ik_llama.cpp load of what make_gguf writes: the rules, and the engines where they are installed."""

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
from small_models import small

from quant.models.named_geometries import named_geometry
from quant.models.synthetic.load_elsewhere import load_failures
from quant.models.synthetic.make_gguf import make_gguf


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
    ],
)  # fmt: skip
def test_what_others_will_not_load(name, sizes, engines, reason):
    found = load_failures(named_geometry(name).resized(**sizes))
    names = {"lcp": "llama.cpp", "ik": "ik_llama.cpp"}
    assert [failure.engine for failure in found] == [names[engine] for engine in engines]
    assert all(re.search(reason, failure.reason) for failure in found)
    both = load_failures(named_geometry(name), only_attention=True)
    assert [failure.engine for failure in both] == list(names.values())


# ---------------------------------------------------------------- llama.cpp

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None


@pytest.mark.skipif(
    not HAS_LLAMA_CPP,
    reason="NOT CHECKED that llama.cpp loads these files: llama-cpp-python is not installed",
)
@pytest.mark.parametrize("qtype", ["Q8_0", "IQ4_NL", "Q2_K"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("deepseek-v2-lite", "split"),
        ("deepseek-v2-lite", "fused"),
        ("deepseek-r1", "split"),
        ("deepseek-r1", "fused"),
        ("llama-8b", "split"),
    ],
)
def test_llama_cpp_loads_and_runs_them(tmp_path, name, form, qtype):
    """Run so, with llama-cpp-python 0.3.36 (CI does not have it), all 15 passing:

    /work/dev/peers/bin/python -m pytest tests/unit/test_load_elsewhere.py -k llama_cpp
    """
    import llama_cpp

    # the real heads and widths, but few layers, experts and tokens
    sizes = dict(n_layer=2, n_vocab=512)
    if name != "llama-8b":
        sizes.update(n_expert=8, mla_form=form)
    if name == "deepseek-r1":
        sizes.update(n_embd=2048, n_head=16, n_ff=2048, n_ff_expert=512)
    path = tmp_path / "model.gguf"
    make_gguf(path, named_geometry(name).resized(**sizes), qtype)
    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=2, logits_all=True, verbose=False)
    try:
        tokens = model.tokenize(b"hello world,\n kqcap", add_bos=True)
        assert model.detokenize(tokens) == b"hello world,\n kqcap"
        model.eval(tokens)
        logits = np.array(model.scores[: len(tokens)])
    finally:
        model.close()
    assert logits.shape == (len(tokens), 512)
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3  # as unit-variance weights give


_LOAD_IN_IK = """
import sys
import ik_llama_cpp._ctypes_api as ik

ik.llama_backend_init()
for path in sys.argv[1:]:
    model = ik.llama_model_load_from_file(path.encode(), ik.llama_model_default_params())
    print("loaded" if model else "refused", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("ik_llama_cpp") is None,
    reason="NOT CHECKED what ik_llama.cpp loads: ik_llama_cpp_python is not installed",
)
def test_ik_llama_cpp_loads_what_is_said_to_load(tmp_path):
    """But for what makes it abort: latents that it does not know, more experts than it holds."""
    mla = dict(n_head=4, d_k=192, d_v=128, n_rot=64, kv_lora_rank=512)
    shapes = [
        ("llama-8b", dict()),
        ("llama-8b", dict(d_k=64, d_v=64, n_rot=64)),
        ("deepseek-v2-lite", dict(n_layer=2, **mla)),
        ("deepseek-v2-lite", dict(n_layer=26, **mla)),
        ("deepseek-r1", dict(n_layer=3, **mla)),
        ("deepseek-r1", dict(n_layer=26, **mla)),
        ("deepseek-r1", dict(n_expert_shared=0, **mla)),
    ]
    paths, expected = [], []
    for number, (name, sizes) in enumerate(shapes):
        geometry = small(name, **sizes)
        paths.append(str(tmp_path / str(number)))
        make_gguf(paths[-1], geometry)
        refused = any(failure.engine == "ik_llama.cpp" for failure in load_failures(geometry))
        expected.append("refused" if refused else "loaded")
    done = subprocess.run([sys.executable, "-c", _LOAD_IN_IK, *paths], capture_output=True)
    lines = done.stderr.decode("utf-8", "replace").splitlines()  # it cuts names in mid-character
    found = [line for line in lines if line in ("loaded", "refused")]
    assert found == expected and set(found) == {"loaded", "refused"}
