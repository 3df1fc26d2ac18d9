"""Whole models on a device: logits as the CPU's, memory as planned, the same bits again."""

import numpy as np
import pytest
from small_models import small

import lowlevel
import quant
from lowlevel import BudgetError
from quant.models import layers
from quant.models.synthetic.make_gguf import make_gguf

# Head sizes that the fused kernels have; vocabularies of 300.
MODELS = {
    "heads": ("llama-8b", dict(n_embd=256, n_head=4, n_head_kv=2, d_k=64, d_v=64, n_rot=64)),
    "latents": (
        "deepseek-v2-lite",
        dict(n_head=2, d_k=192, d_v=128, n_rot=64, kv_lora_rank=512, n_ff_expert=256),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def path(request, tmp_path_factory):
    name, sizes = MODELS[request.param]
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    make_gguf(path, small(name, **sizes), "IQ4_NL")
    return path


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(5).integers(0, 300, 40)


def load(path, device="cpu", **options):
    return quant.load(path, device=device, **dict(n_ctx=64, n_ubatch=16) | options)


def error(logits, expected):
    return np.sqrt(((logits - expected) ** 2).mean() / (expected**2).mean())


def test_logits_are_the_cpus(path, tokens, device):
    """Bound: bfloat16 rows lose 2**-9 at every hand-over, and int8 products of both sides more (matmul's docstring)."""
    with load(path, exact=True) as net:
        expected = net.prefill(tokens, all_logits=True)
        next_one = net.decode(7)
    with load(path, exact=True) as net, load(path, device) as there:
        assert there.pool.used == there.memory.pool
        for _ in range(2):
            there.truncate(0)
            found = there.prefill(tokens, all_logits=True)
            last = there.decode(7)
            assert error(found, expected) < 0.03
            assert error(last, next_one) < 0.03
        there.truncate(30)
        again = there.prefill(tokens[30:])
        assert error(again, expected[-1]) < 0.03
        assert there.pool.used == there.pool.peak == there.memory.pool
        assert there.compute_peak <= there.memory.compute
        # One token more each time: the same launches, in a graph where there are graphs.
        assert there.plan(1, 40).counted
        there.truncate(30)
        for position in range(30, 36):
            assert error(there.decode(tokens[position]), expected[position]) < 0.03
        first = there.prefill(tokens[:8])
        there.truncate(there.n_kv - 8)
        np.testing.assert_array_equal(there.prefill(tokens[:8]), first)


def test_experts_of_long_passes(tmp_path, tokens, device, monkeypatch):
    """Their rows are narrowed, and their outputs go over what gate and up have left, some columns at a time: as in one go."""
    path = tmp_path / "wide.gguf"
    sizes = {**MODELS["latents"][1], "n_ff_expert": 128, "n_embd": 256}
    make_gguf(path, small("deepseek-v2-lite", **sizes), "IQ4_NL")
    with load(path, exact=True) as net:
        expected = net.prefill(tokens, all_logits=True)
    monkeypatch.setattr(layers, "LEAST_GROUP_ROWS", 8)
    with load(path, device) as net:
        found = net.prefill(tokens, all_logits=True)
        names = [op.name for op in net.plan(16, 16, 16).operations]
        parts = names.count("blk.1.ffn_down_exps")
        assert net.compute_peak <= net.memory.compute
        compute = net.memory.activations
    assert parts == 2 and "blk.1.narrowed" in names
    assert error(found, expected) < 0.03
    monkeypatch.setattr(layers, "LEAST_PART", 2**20)
    with load(path, device) as net:
        whole = net.prefill(tokens, all_logits=True)
        names = [op.name for op in net.plan(16, 16, 16).operations]
        assert net.memory.activations > compute
    assert "blk.1.ffn_down_exps" in names
    np.testing.assert_array_equal(found, whole)


def test_a_pool_that_is_too_small_is_refused_before_loading(path, device):
    with load(path, device) as net:
        needed = net.memory
    assert needed.weights_copied > needed.kv_cache
    with lowlevel.Pool(needed.weights_copied, device=device) as pool:
        with pytest.raises(BudgetError, match="pool") as refusal:
            load(path, device, pool=pool)
        assert refusal.value.smallest_budget > pool.budget
        assert pool.peak == 0
    with pytest.raises(ValueError, match="n_threads"):
        load(path, device, n_threads=2)
