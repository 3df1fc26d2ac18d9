"""Whole models on files made here: what is planned is taken, caches continue, bad use is refused, Ctrl-C is safe."""

import collections
import dataclasses

import numpy as np
import pytest
from small_models import small

import lowlevel
import lowlevel.devices
import quant
from lowlevel.pool.arena import align_up
from lowlevel.sizes import parse_size
from quant.models.buffers import Buffer, place_scratch
from quant.models.config import LayerConfig, ModelConfig, Rope
from quant.models.kv_cache import LayerCache, cache_bytes, kv_type
from quant.models.layers import record_pass
from quant.models.model import KEPT_PASSES, Taken, plan_model
from quant.models.named_geometries import named_geometry
from quant.models.pipeline import UBatch
from quant.models.planned_file import PlannedFile
from quant.models.synthetic.make_gguf import make_gguf

N_CTX, N_UBATCH = 160, 32
FILES = {
    "heads": ("llama-8b", {}),
    "latents": ("deepseek-r1", dict(n_rot=32, d_k=96)),
    "latents, kv_b": ("deepseek-v2-lite", dict(n_rot=32, d_k=64, mla_form="fused")),
}


@pytest.fixture(scope="module", params=FILES)
def path(request, tmp_path_factory):
    name, sizes = FILES[request.param]
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    make_gguf(path, small(name, **sizes), "F16")
    return path


@pytest.fixture
def tokens():
    return np.random.default_rng(5).integers(0, 300, 150)


def load(path, **options):
    options = dict(n_ctx=N_CTX, n_ubatch=N_UBATCH, kv_type="f32", exact=True) | options
    return quant.load(path, **options)


def error(logits, expected):
    """Relative root mean square."""
    return np.sqrt(((logits - expected) ** 2).mean() / (expected**2).mean())


def taken_at(bound, made, n_kv):
    """(pool, the most that operations take of it) of each place where a pass has scratch."""
    planned = collections.defaultdict(int)
    for op, offset in zip(made.operations, made.scratch_offsets, strict=True):
        place, n_bytes = (offset, offset + align_up(op.scratch_bytes)), op.scratch_bytes
        if op.attention is not None:
            place = offset, len(bound._memory)
            plan = bound.state.plan(op.attention, op.attention.n_keys(n_kv))
            n_bytes = plan.scratch_bytes
        planned[place] = max(planned[place], n_bytes)
    return [(bound._pools[place], n_bytes) for place, n_bytes in planned.items()]


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("mla", ["auto", 0, 1])
def test_every_pass_takes_what_its_plan_says(path, tokens, kind, mla):
    with load(path, kv_type=kind, mla=mla, exact=False) as net:
        assert net.pool.used == net.memory.pool
        parts = cache_bytes(net.config, N_CTX, N_UBATCH, net.choices.kv_type), net.memory.compute
        assert net.memory.pool == sum(parts) + net.memory.weights_made
        for n, n_outputs in ((32, 0), (32, 1), (1, 1), (17, 17), (5, 1)):
            n_kv = net.n_kv + n
            made = net.plan(n, n_kv, n_outputs)
            (segment,) = net._segments
            if n_outputs == 0:
                nothing = np.empty((0, 300), np.float32)
                ids = tokens[net.n_kv : n_kv].astype(np.int32)
                net._run([UBatch(ids, net.n_kv, 0, nothing, 0)])
            else:
                net.prefill(tokens[net.n_kv : n_kv], all_logits=n_outputs > 1)
            taken = taken_at(segment._bound[id(made)], made, n_kv)
            assert all(pool.peak == scratch for pool, scratch in taken)
            assert not any(pool.used for pool, _ in taken)
            attention_bytes = made.attention_bytes(n_kv, net._plans.attention_bytes)
            assert made.workspace_bytes(attention_bytes) <= net.memory.workspace
        assert net.pool.peak == net.memory.pool
        assert net.compute_peak <= net.memory.compute


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_tokens_one_by_one_are_a_prompt(path, tokens, kind):
    with load(path, kv_type=kind) as net:
        expected = net.prefill(tokens[:12], all_logits=True)
        net.truncate(0)
        found = [net.decode(token) for token in tokens[:12]]
        assert error(np.array(found), expected) < (1e-4 if kind == "f16" else 1e-1)


def test_buffers_that_live_at_once_lie_apart(path):
    with load(path) as net:
        for n_tokens, n_outputs in ((32, 0), (32, 1), (32, 32), (1, 1)):
            made = net.plan(n_tokens, N_CTX, n_outputs)
            used = [b for b in made.buffers if b.first >= 0]
            for b in used:
                assert b.offset % 256 == 0 and b.offset + b.n_bytes <= made.activation_bytes
                for other in used:
                    meet = b.first <= other.last and other.first <= b.last
                    apart = (
                        b.offset + b.n_bytes <= other.offset
                        or other.offset + other.n_bytes <= b.offset
                    )
                    assert other is b or apart or not meet
            for number, (op, start) in enumerate(
                zip(made.operations, made.scratch_offsets, strict=True)
            ):
                stop = net.memory.workspace if op.attention else start + op.scratch_bytes
                assert start % 256 == 0 and stop <= net.memory.workspace
                for b in used:
                    is_live = b.first <= number <= b.last and start < stop
                    assert not is_live or stop <= b.offset or b.offset + b.n_bytes <= start
            brief = record_pass(net.config.of_each_kind(), net.choices, n_tokens, n_outputs, N_CTX)
            assert brief.activation_bytes == made.activation_bytes


def test_a_pass_says_what_paths_its_products_and_attention_take(path):
    with load(path) as net:
        shown = net.plan(32, N_CTX, 1).to_dict(N_CTX)["operations"]
        named = {op["kind"] for op in shown if op["path"]}
        assert {"product", "attention", "output"} <= named
        assert not any(op["path"] for op in shown if op["kind"] in ("norm", "rope", "add"))


@pytest.mark.parametrize("n_tokens, n_outputs, n_left", [(1, 1, 0), (32, 0, 0), (32, 1, 1)])
def test_a_norm_does_the_addition_before_it(path, n_tokens, n_outputs, n_left):
    """Where it is of the same rows: of the last layer, rows whose logits are asked for go on alone."""
    with load(path) as net:
        operations = net.plan(n_tokens, N_CTX, n_outputs).operations
        assert sum(op.name.endswith("residual") for op in operations) == n_left


def test_scratch_lies_in_the_lowest_hole_that_holds_it():
    """Buffers of 256 bytes, one of them dead in the second operation, and a hole of 512 bytes."""
    buffers = []
    for offset, first, last in ((0, 0, 1), (256, 0, 0), (512, 0, 1), (1280, 1, 1)):
        buffers.append(Buffer("x", (256,), "uint8"))
        buffers[-1].offset, buffers[-1].first, buffers[-1].last = offset, first, last
    assert place_scratch(buffers, [256, 256, 0]) == [768, 256, 0]
    assert place_scratch(buffers, [1024, 512, 2**20]) == [768, 768, 0]
    assert place_scratch(buffers, [None, 768, None]) == [768, 1536, 0]


def test_a_prompt_continues_from_any_token(path, tokens):
    with load(path) as net:
        whole = net.prefill(tokens, all_logits=True)
        assert net.n_kv == len(tokens)
        for kept in (100, 31, 32, 1):
            net.truncate(kept)
            assert error(net.prefill(tokens[kept:]), whole[-1]) < 1e-5
        net.truncate(0)
        for n in (7, 33, 40):
            last = net.prefill(tokens[net.n_kv : net.n_kv + n])
            assert error(last, whole[net.n_kv - 1]) < 1e-5
        for _ in range(5):
            last = net.decode(tokens[net.n_kv])
            assert error(last, whole[net.n_kv - 1]) < 1e-5


def test_passes_of_many_sizes_do_not_pile_up(path, tokens):
    with load(path) as net:
        whole = net.prefill(tokens, all_logits=True)
        for n in range(1, N_UBATCH):
            net.truncate(0)
            assert error(net.prefill(tokens[:n]), whole[n - 1]) < 1e-5
        (segment,) = net._segments
        assert len(segment._bound) == KEPT_PASSES
        assert sum(key[0] for key in segment.plans._passes) <= KEPT_PASSES + 4


def test_latents_give_the_same_absorbed_and_decompressed(path, tokens):
    results = []
    for mla in (0, 1, 2, 3, "auto"):
        with load(path, mla=mla) as net:
            results.append(net.prefill(tokens, all_logits=True))
    assert max(error(each, results[0]) for each in results) < 1e-5


def test_bits_do_not_depend_on_budget_or_threads(path, tokens):
    results = []
    for n_threads in (1, 2):
        with load(path, n_threads=n_threads, exact=False) as net:
            needed = net.memory.pool
            results.append(net.prefill(tokens, all_logits=True))
            for extra in (0, 2**20):
                with lowlevel.Pool(needed + extra) as pool:
                    options = dict(n_threads=n_threads, exact=False, pool=pool)
                    with load(path, **options) as other:
                        results.append(other.prefill(tokens, all_logits=True))
                        assert pool.peak == other.memory.pool == needed
                    assert pool.used == 0
    for each in results[1:]:
        np.testing.assert_array_equal(each.view(np.int32), results[0].view(np.int32))


def test_a_smaller_pool_makes_smaller_groups(path, tokens):
    with load(path) as net:
        expected, needed = net.prefill(tokens), net.memory
    smallest = None
    for budget in range(needed.pool, needed.kv_cache, -(needed.compute // 6)):
        with lowlevel.Pool(budget) as pool:
            try:
                with load(path, pool=pool) as net:
                    assert pool.used == net.memory.pool <= budget
                    assert error(net.prefill(tokens), expected) < 1e-5
                    assert pool.peak == net.memory.pool
                    smallest = budget
            except lowlevel.BudgetError as refusal:
                assert "pool" in str(refusal)
                assert refusal.smallest_budget > budget
            assert pool.used == 0
    assert smallest is not None


def test_an_amb_of_one_mebibyte_works(path, tokens):
    with load(path, amb="1MiB") as net, load(path) as other:
        assert net._plans.attention_bytes <= 2**20
        assert error(net.prefill(tokens), other.prefill(tokens)) < 1e-5
    with pytest.raises(lowlevel.BudgetError, match="amb"):
        load(path, amb=1000, mla=0)


@pytest.mark.parametrize("method", ["auto", "steps"])
def test_methods_agree(path, tokens, method):
    with load(path, method=method) as net, load(path) as other:
        assert error(net.prefill(tokens), other.prefill(tokens)) < 1e-5


def test_an_interrupt_leaves_whole_u_batches(path, tokens, monkeypatch):
    with load(path) as net:
        expected = net.prefill(tokens)
        net.truncate(0)
        run, calls = lowlevel.ops.rms_norm, []
        (segment,) = net._segments

        def interrupted(*args, **kwargs):
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return run(*args, **kwargs)

        def after_first(done, n):
            monkeypatch.setattr(segment.plans, "_passes", {})
            segment._bound.clear()
            monkeypatch.setattr("lowlevel.ops.rms_norm", interrupted)

        with pytest.raises(KeyboardInterrupt):
            net.prefill(tokens, progress=after_first)
        monkeypatch.setattr("lowlevel.ops.rms_norm", run)
        pools = [pool for bound in segment._bound.values() for pool in bound._pools.values()]
        segment._bound.clear()
        segment.plans._passes.clear()
        assert net.n_kv == N_UBATCH
        assert pools and not any(pool.used for pool in pools)
        assert error(net.prefill(tokens[N_UBATCH:]), expected) < 1e-5


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (dict(n_ctx=2**40), ValueError, "n_ctx"),
        (dict(n_ctx=0), ValueError, "n_ctx"),
        (dict(n_ctx="many"), TypeError, "n_ctx"),
        (dict(n_ubatch=0), ValueError, "n_ubatch"),
        (dict(kv_type="q9"), ValueError, "kv_type: expected one of f32, f16"),
        (dict(mla=7), ValueError, "mla"),
        (dict(mla=True), ValueError, "mla"),
        (dict(method="fast"), ValueError, "method"),
        (dict(exact=1), TypeError, "exact"),
        (dict(n_threads=0), ValueError, "n_threads"),
        (dict(amb="lots"), ValueError, "lots"),
    ],
)
def test_bad_options_are_refused(path, options, kind, words):
    with pytest.raises(kind, match=words):
        load(path, **options)


def test_bad_tokens_are_refused(path, tokens):
    with load(path) as net:
        net.prefill(tokens[:10])
        for bad, kind in (
            ([], ValueError),
            ([300], ValueError),
            ([-1], ValueError),
            ([1.5], TypeError),
            ([[1]], ValueError),
            (np.zeros(N_CTX, int), ValueError),
        ):
            with pytest.raises(kind, match="tokens"):
                net.prefill(bad)
            assert net.n_kv == 10
        for bad in (11, -1):
            with pytest.raises(ValueError, match="n_kv"):
                net.truncate(bad)
        with pytest.raises(TypeError, match="n_kv"):
            net.truncate("all")
    with pytest.raises(ValueError, match="closed"):
        net.prefill([1])


class Header:
    """An open file whose header says something else."""

    def __init__(self, file, metadata=None, drop=(), shapes=None):
        self._file, self._drop, self._shapes = file, drop, shapes or {}
        self.metadata = {**file.metadata, **(metadata or {})}
        self.attention, self.paths = file.attention, file.paths

    def __contains__(self, name):
        return name in self._file and name not in self._drop

    def __iter__(self):
        return (name for name in (*self._file, *self._shapes) if name not in self._drop)

    def tensor_info(self, name):
        if name not in self._shapes:
            return self._file.tensor_info(name)
        info = self._file.tensor_info(name if name in self._file else "output_norm.weight")
        return dataclasses.replace(info, shape=self._shapes[name])


def test_leading_dense_layers_are_as_the_file_says(path):
    with quant.open(path) as file:
        name = file.metadata["general.architecture"]
        n_dense = file.metadata.get(f"{name}.leading_dense_block_count")
        if n_dense is None:
            pytest.skip("a file without that key")
        with pytest.raises(
            ValueError,
            match=f"leading_dense_block_count' is {n_dense + 1}; but layer {n_dense} has experts",
        ):
            ModelConfig.from_file(
                Header(file, metadata={f"{name}.leading_dense_block_count": n_dense + 1})
            )
        if n_dense:
            with pytest.raises(ValueError, match="is 0; but layer 0 has no experts"):
                ModelConfig.from_file(
                    Header(file, metadata={f"{name}.leading_dense_block_count": 0})
                )


def test_what_changes_the_pass_and_is_not_understood_is_refused(path):
    with quant.open(path) as file:
        name = file.metadata["general.architecture"]
        ModelConfig.from_file(Header(file))
        for change, words in (
            (dict(drop=("blk.1.ffn_norm.weight",)), "blk.1.post_attention_norm.weight"),
            (dict(drop=("blk.0.attn_output.weight",)), "blk.0.attn_output.weight.*missing"),
            (dict(shapes={"blk.0.attn_output.weight": (7, 9)}), "attn_output.weight.*shape"),
            (dict(shapes={"blk.0.attn_magic.weight": (7,)}), "attn_magic.*not understood"),
            (dict(metadata={f"{name}.attention.magic": 3}), "attention.magic.*not understood"),
            (dict(metadata={f"{name}.rope.scaling.type": "su"}), "scaling.type.*'su'"),
            (dict(metadata={f"{name}.expert_gating_func": 9, f"{name}.expert_count": 4}), None),
            (dict(metadata={f"{name}.attention.layer_norm_rms_epsilon": "x"}), "epsilon"),
        ):
            if words is None and name != "deepseek2":
                continue
            with pytest.raises(ValueError, match=words):
                ModelConfig.from_file(Header(file, **change))


@pytest.mark.parametrize(
    ("name", "qtype", "most"), [("deepseek-v2-lite", "IQ4_NL", 128), ("deepseek-r1", "Q2_K", 640)]
)
@pytest.mark.parametrize("amb", ["1MiB", "64MiB", "256MiB"])
def test_whole_contexts_of_large_models_take_little(name, qtype, most, amb):
    """Compute memory at a context of 163840 and u-batches of 2048, in MiB, whatever amb (ik_llama.cpp: 989 and 1313)."""
    file = PlannedFile(named_geometry(name), qtype)
    planned, memory = plan_model(file, n_ctx=163840, n_ubatch=2048, amb=amb, n_threads=2)
    assert memory.compute <= most * 2**20
    assert planned.attention_bytes <= parse_size(amb)


# ---------------------------------------------------------------- windows

ROPE = Rope(n_rot=4, pairs="halves")


def layer(window):
    sizes = dict(index=0, n_head=2, n_head_kv=2, d_k=4, d_v=4, q_lora_rank=0, kv_lora_rank=0)
    parts = dict(rope=ROPE, scale=1.0, softcap=0.0, n_ff=1, n_ff_expert=0, n_ff_shared=0)
    return LayerConfig(**sizes, **parts, window=window, routing=None, tensors=None)


@pytest.mark.parametrize(("window", "n_ubatch"), [(5, 8), (8, 3), (16, 5), (3, 1)])
@pytest.mark.parametrize("stops", [0, 1, 2, 3])
def test_a_window_keeps_its_rows_through_moves_and_interrupts(window, n_ubatch, stops):
    """Row i holds the number of its token: after any steps, the last rows are those of the last tokens."""
    rng = np.random.default_rng(window * stops)
    n_ctx = 200
    with lowlevel.Pool("1MiB") as pool:
        taken = Taken(pool)
        cache = LayerCache(layer(window), n_ctx, n_ubatch, kv_type("f32"), taken)
        assert cache._arrays[0].shape[1] == window + n_ubatch
        real_copy, n_kv = cache._device.copy, 0
        while n_kv < 150:
            n = int(rng.integers(1, n_ubatch + 1))
            if stops:
                cache._device = _StoppingDevice(real_copy, stops)
                try:
                    cache.make_room(n_kv, n)
                except KeyboardInterrupt:
                    pass
                cache._device = lowlevel.devices.get("cpu")
            cache.make_room(n_kv, n)
            rows = np.broadcast_to(np.arange(n_kv, n_kv + n, dtype="f4")[None, :, None], (2, n, 4))
            cache.write((rows.copy(), rows.copy()), n_kv, pool, 1)
            n_kv += n
            n_keys = min(n_kv, window - 1 + n)
            for array in cache.read(n_kv, n_keys):
                expected = np.arange(n_kv - n_keys, n_kv)
                np.testing.assert_array_equal(array[1, :, 2], expected)
        taken.free()


class _StoppingDevice:
    """A device whose copies are interrupted after, or before, they are done."""

    def __init__(self, copy, after):
        self._copy, self._left = copy, after

    def copy(self, target, source):
        self._left -= 1
        self._copy(target, source)
        if self._left <= 0:
            raise KeyboardInterrupt


def test_a_layer_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer(3).window = 4
