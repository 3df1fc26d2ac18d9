"""Models over several ranks: logits within rounding of one device's, memory as planned, refusals on all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import small

import lowlevel
import quant
from lowlevel.comm import Outline, RankError, RankThreads, local_group
from quant.models.config import ModelConfig
from quant.models.context import KeyShares, Share
from quant.models.model import plan_model
from quant.models.split import check_split, split_config
from quant.models.synthetic.make_gguf import make_gguf

OPTIONS = dict(n_ctx=96, n_ubatch=32, n_threads=1)
# Head counts that odd ratios divide, biases, sinks, experts with biases, latents in all forms of their files.
FILES = {
    "deepseek-r1": ("deepseek-r1", "Q8_0", {}),
    "deepseek-v2-lite": ("deepseek-v2-lite", "Q4_0", dict(n_head=4, n_ff=384, n_ff_expert=192, mla_form="fused")),
    "qwen2": ("qwen2-7b", "F16", dict(n_ff=128)),
    "gemma2": ("gemma-2-9b", "Q8_0", dict(n_ff=128, n_head_kv=2)),
    "gpt-oss": ("gpt-oss-20b", "F16", dict(n_ff_expert=64, n_head_kv=2)),
}  # fmt: skip


@pytest.fixture(scope="module")
def path_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def path(name):
        base, qtype, sizes = FILES[name]
        file = folder / f"{name}.gguf"
        if not file.exists():
            make_gguf(file, small(base, **sizes), qtype)
        return file

    return path


@pytest.fixture
def tokens():
    return np.random.default_rng(5).integers(0, 300, 70)


def error(logits, expected):
    """Relative root mean square."""
    return np.sqrt(((logits - expected) ** 2).mean() / (expected**2).mean())


def passes(net, tokens):
    """Logits of a prompt in several u-batches, and of tokens behind it."""
    logits = [net.prefill(tokens[:-3], all_logits=True)]
    return np.concatenate([*logits, *(net.decode(token)[None] for token in tokens[-3:])])


def on_ranks(names, path, tokens, **options):
    """What every rank finds, and its peak beside its plan."""

    def run(comm):
        with quant.load(path, comm.device, comm=comm, **options) as net:
            assert net.pool.used == net.pool.peak == net.memory.pool
            logits = passes(net, tokens)
            assert net.pool.peak == net.memory.pool and net.compute_peak <= net.memory.compute
            return logits, net.memory

    with RankThreads(local_group(names)) as threads:
        return threads.run(run)


# What ranks divide a model's keys: latents, heads with biases, with a cap of scores.
OF_KEYS = {"deepseek-r1": {}, "deepseek-v2-lite": dict(mla=0), "qwen2": dict(kv_type="q8_0")}


@pytest.mark.parametrize(
    "name, n_ranks", [(name, 2) for name in OF_KEYS] + [("deepseek-v2-lite", 3)]
)
def test_keys_split_over_ranks_give_the_same(path_of, tokens, name, n_ranks):
    path = path_of(name)
    options = {**OPTIONS, "kv_type": "f32", "exact": True, **OF_KEYS[name]}
    with quant.load(path, **options) as net:
        expected, whole = passes(net, tokens), net.memory
    found = on_ranks(("cpu",) * n_ranks, path, tokens, split="context", **options)
    assert error(found[0][0], expected) < 1e-5
    for logits, memory in found:
        np.testing.assert_array_equal(logits, found[0][0])
        assert memory.kv_cache == whole.kv_cache // n_ranks


def test_keys_split_over_simulated_devices(path_of, tokens):
    path, options = path_of("deepseek-r1"), dict(n_ctx=16, n_ubatch=8, kv_type="f16", exact=True)
    with quant.load(path, "cpu", **options) as net:
        expected = passes(net, tokens[:14])
    found = on_ranks(("cudasim", "cudasim:1"), path, tokens[:14], split="context", **options)
    assert error(found[0][0], expected) < 1e-2
    np.testing.assert_array_equal(found[0][0], found[1][0])


def test_divided_keys_continue_from_any_token(path_of, tokens):
    path, options = path_of("qwen2"), dict(OPTIONS, kv_type="f32", exact=True)
    with quant.load(path, **options) as net:
        expected = net.prefill(tokens, all_logits=True)

    def run(comm):
        with quant.load(path, comm=comm, split="context", **options) as net:
            net.prefill(tokens[:60])
            for kept in (41, 1, 33):
                net.truncate(kept)
                rest = net.prefill(tokens[kept:], all_logits=True)
                assert error(rest, expected[kept:]) < 1e-5

    with RankThreads(local_group(("cpu", "cpu", "cpu", "cpu"))) as threads:
        threads.run(run)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 7), st.data())
def test_rows_are_dealt_evenly(sizes, n_ranks, data):
    """Every token's row is kept by one rank, and no rank ever has more than its share of the whole context."""
    n_ctx = sum(sizes) or 1
    books = [KeyShares(n_ctx, Outline("copies", n_ranks, rank)) for rank in range(n_ranks)]
    n_kv = 0
    for size in sizes:
        shares = [book.deal(n_kv, size) for book in books]
        assert [share.start for share in shares[1:]] + [size] == [s.stop for s in shares]
        counts = [share.n_before + share.stop - share.start for share in shares]
        assert sum(counts) == n_kv + size and max(counts) <= -(-n_ctx // n_ranks)
        n_kv = data.draw(st.integers(0, n_kv + size))


@given(
    st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 5), st.integers(1, 30)
)
def test_segments_see_what_causality_allows(n_own, before, behind, n_before, n_queries):
    share = Share(before, before + n_own, n_before)
    n_tokens = before + n_own + behind
    n_queries = min(n_queries, n_tokens)
    seen = {}
    for part in share.segments(n_tokens, n_queries):
        for row in range(part.start, part.stop):
            seen[row] = part.n_keys - (part.stop - 1 - row if part.causal else 0)
    first = n_tokens - n_queries
    tokens = range(first, n_tokens)
    expected = [n_before + min(n_own, max(0, token + 1 - before)) for token in tokens]
    assert [seen[row] for row in range(n_queries)] == expected


@pytest.mark.parametrize("name", FILES)
def test_tensors_split_over_ranks_give_the_same(path_of, tokens, name):
    path = path_of(name)
    options = dict(OPTIONS, kv_type="f32", exact=True)
    with quant.load(path, **options) as net:
        expected, whole = passes(net, tokens), net.memory
    found = on_ranks(("cpu", "cpu"), path, tokens, split="tensor", **options)
    assert error(found[0][0], expected) < 1e-5
    np.testing.assert_array_equal(found[0][0], found[1][0])  # every rank has the same bits
    latent = "deepseek" in name
    assert all(memory.kv_cache == whole.kv_cache // (1 if latent else 2) for _, memory in found)


def test_tensors_split_over_simulated_devices(path_of, tokens):
    path, options = path_of("deepseek-r1"), dict(n_ctx=16, n_ubatch=8, kv_type="f32", exact=True)
    with quant.load(path, "cpu", **options) as net:
        expected = passes(net, tokens[:14])
    with quant.open(path) as file:
        _, whole = plan_model(file, "cudasim", **options)
    found = on_ranks(("cudasim", "cudasim:1"), path, tokens[:14], split="tensor", **options)
    for logits, memory in found:
        assert error(logits, expected) < 1e-2  # of heads in bfloat16
        assert memory.weights_copied < 0.75 * whole.weights_copied


@pytest.mark.parametrize("name, devices", [("deepseek-r1", ("cpu",) * 3), ("gemma2", ("cpu",) * 2)])
def test_layers_split_over_ranks_give_the_same_bits(path_of, tokens, name, devices):
    path, options = path_of(name), dict(OPTIONS, kv_type="f16")
    with quant.load(path, **options) as net:
        expected, whole = passes(net, tokens), net.memory
    found = on_ranks(devices, path, tokens, split="layer", **options)
    for logits, _ in found:
        np.testing.assert_array_equal(logits.view("i4"), expected.view("i4"))
    assert sum(memory.kv_cache for _, memory in found) == whole.kv_cache


def test_layers_by_shares(path_of):
    path = path_of("deepseek-r1")  # made once, not by each rank

    def run(comm):
        with quant.load(path, comm=comm, split="layer", tensor_split=(2, 1), **OPTIONS) as net:
            return net.parts[0].start, net.parts[0].stop

    with RankThreads(local_group(("cpu", "cpu"))) as threads:
        assert threads.run(run) == [(0, 2), (2, 3)]
    with RankThreads(local_group(("cpu",) * 4)) as threads:
        with pytest.raises(
            ValueError, match="split: 4 ranks of which each has at least one of 3 layers"
        ):
            threads.run(lambda comm: quant.load(path, comm=comm, split="layer", **OPTIONS))


def test_what_one_rank_cannot_take_none_takes(path_of):
    path = path_of("deepseek-r1")

    def run(comm):
        with lowlevel.Pool("64KiB" if comm.rank else "64MiB") as pool:
            with pytest.raises((lowlevel.BudgetError, RankError), match="pool: 65536 bytes"):
                quant.load(path, comm=comm, split="tensor", pool=pool, **OPTIONS)
            assert pool.peak == 0
        with pytest.raises((OSError, RankError), match=r"[Nn]o such file"):
            quant.load(f"{path}{'x' * comm.rank}", comm=comm, split="tensor", **OPTIONS)

    with RankThreads(local_group(("cpu", "cpu"))) as threads:
        threads.run(run)


REFUSED = {
    "deepseek-r1": (3, "split: 3 ranks do not divide the 4 heads of layer 0: 4 parts at most; 2 would do"),
    "qwen2": (4, r"split: 4 ranks do not divide the 2 K/V heads of layer 0: 2 parts at most; 2 would do"),
    "gemma2": (5, "no number|2 would do"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_divide_is_named(path_of, name):
    n_ranks, message = REFUSED[name]
    with quant.open(path_of(name)) as file:
        config = ModelConfig.from_file(file)
        with pytest.raises(ValueError, match=message):
            check_split(config, "tensor", n_ranks)


def test_blocks_are_not_cut(tmp_path):
    path = tmp_path / "blocks.gguf"
    make_gguf(path, small("llama-8b", n_ff=512), "Q4_K")
    with quant.open(path) as file:
        config = ModelConfig.from_file(file)
        name = r"axis 1 of blk.0.attn_output.weight \(256, 256\) in blocks of 256: 1 parts at most; no number"
        with pytest.raises(ValueError, match=name):
            check_split(config, "tensor", 2)


def test_shares_are_the_whole(path_of):
    """Every weight's shares side by side are the tensor, and nothing is in two of them."""
    with quant.open(path_of("gpt-oss")) as file:
        config = ModelConfig.from_file(file)
        halves = [split_config(config, "tensor", rank, 2).layers[1].tensors for rank in range(2)]
        for name, axis in (("attn_k.bias", 0), ("ffn_down_exps.weight", 2), ("attn_q.weight", 0)):
            whole = config.layers[1].tensors[name].floats_of(file)
            parts = [half[name].floats_of(file) for half in halves]
            np.testing.assert_array_equal(np.concatenate(parts, axis), whole)


def test_arguments(path_of):
    path, comm = path_of("qwen2"), local_group(("cpu",))[0]
    with pytest.raises(ValueError, match="comm, split: expected both or neither"):
        quant.load(path, split="tensor")
    with pytest.raises(ValueError, match='split: expected "layer" or "tensor"'):
        quant.load(path, comm=comm, split="rows")
    with pytest.raises(ValueError, match="comm: expected one of cudasim"):
        quant.load(path, "cudasim", comm=comm, split="tensor")
    assert comm.outline == Outline("copies", 1, 0)
