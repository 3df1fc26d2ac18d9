"""Models over several devices, and over a device and the CPU: the single device's logits, memory as planned, no waits."""

import itertools

import numpy as np
import pytest
from small_models import small

import quant
from lowlevel import BudgetError, Pool, cudasim, devices
from lowlevel.gpu.kernel_device import KernelDevice
from quant.models import crossing
from quant.models.synthetic.make_gguf import make_gguf

TWO = ["cudasim", "cudasim:1"]
OPTIONS = dict(n_ctx=32, n_ubatch=8)
# What makes the host wait for a device, or takes memory beside the pools.
WAITS = ("synchronise", "settle", "finish", "to_host", "from_host", "download", "allocate", "empty")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three layers: one dense, two with experts and a shared one."""
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    sizes = dict(n_layer=3, n_head=2, d_k=192, d_v=128, n_rot=64, kv_lora_rank=512, n_ff_expert=256)
    make_gguf(path, small("deepseek-v2-lite", **sizes), "IQ4_NL")
    return path


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(5).integers(0, 300, 21)


def passes(net, tokens):
    """Logits of a prompt in three u-batches, of a token behind it, and again from the middle; memory is as planned."""
    for name, pool in net.pools.items():
        assert pool.used == pool.peak == net.memory_of[name].pool
    found = [net.prefill(tokens), net.decode(7)]
    net.truncate(5)
    found.append(net.prefill(tokens[5:], all_logits=True)[-1])
    found.append(net.decode(7))
    for name, pool in net.pools.items():
        assert pool.used == pool.peak == net.memory_of[name].pool
    assert net._pinned is None or net._pinned.pool.peak == net.memory.host
    assert net.compute_peak <= net.memory.compute
    return np.stack(found)


def error(logits, expected):
    return np.sqrt(((logits - expected) ** 2).mean() / (expected**2).mean())


@pytest.fixture(scope="module")
def expected(path, tokens):
    with quant.load(path, "cudasim", **OPTIONS) as net:
        return passes(net, tokens)


def test_layers_split_over_equal_devices_give_the_same_bits(path, tokens, expected):
    with quant.load(path, TWO, tensor_split=[2, 2], **OPTIONS) as net:
        assert [(part.device, part.start, part.stop) for part in net.parts] == [
            ("cudasim", 0, 2), ("cudasim:1", 2, 3)
        ]  # fmt: skip
        np.testing.assert_array_equal(passes(net, tokens), expected)


def test_devices_work_on_different_u_batches_and_nobody_waits(path, tokens, monkeypatch):
    """The second device is given a u-batch in the step in which the first is given the next one."""
    with quant.load(path, TWO, tensor_split=[2, 2], **OPTIONS) as net:
        seen = []
        with monkeypatch.context() as patch:
            for name in TWO:
                device = devices.get(name)
                for wait in WAITS:
                    patch.setattr(device, wait, _noting(seen, name, wait, getattr(device, wait)))
            launch = KernelDevice.launch

            def launched(device, kernel, *arguments, **options):
                seen.append((device.name, "launch"))
                launch(device, kernel, *arguments, **options)

            patch.setattr(KernelDevice, "launch", launched)
            net.prefill(tokens[:16])
        order = [each for i, each in enumerate(seen) if i == 0 or each != seen[i - 1]]
        assert order == [
            ("cudasim", "launch"),  # the first u-batch
            ("cudasim:1", "launch"),
            ("cudasim", "launch"),  # the second one
            ("cudasim:1", "launch"),
            ("cudasim:1", "download"),  # the logits, to where the caller wants them
            ("cudasim:1", "synchronise"),
        ]


def _noting(seen, name, what, call):
    def noted(*arguments, **options):
        seen.append((name, what))
        return call(*arguments, **options)

    return noted


def test_without_events_the_simulator_complains(path, tokens, monkeypatch):
    """That the order above is held by something: rows that nobody waits for are found."""
    monkeypatch.setattr(crossing, "wait_for", lambda device, moment: None)
    with quant.load(path, TWO, tensor_split=[2, 2], **OPTIONS) as net:
        with pytest.raises(cudasim.StreamError, match=r"upload .* reads memory that copy_out"):
            net.prefill(tokens)


@pytest.mark.parametrize(
    "options",
    [dict(cpu_moe=True), dict(n_gpu_layers=1, place=[(r"blk\.2\.ffn_.*_exps", "CPU")])],
    ids=["experts", "layers and experts"],
)
def test_a_cpu_and_a_device_agree_with_the_cpu(path, tokens, options):
    """Bound: as tests/cuda/test_models_on_devices.py has it, of roundings of the rows to bfloat16 and 8 bits."""
    with quant.load(path, exact=True, **OPTIONS) as net:
        exact = passes(net, tokens)
    with quant.load(path, "cudasim", **OPTIONS, **options) as net:
        assert net.memory_of["cudasim"].weights_copied < net.memory.weights
        assert error(passes(net, tokens), exact) < 0.03
        (segment,) = (each for each in net._segments if each.part.host_experts)
        names = [op.name for op in segment.plans.of(8, 1, 8).operations]
        out, back = names.index("blk.2.experts_out"), names.index("blk.2.on_host")
        assert any("shexp" in name for name in names[out:back])


def test_a_device_that_is_too_small_is_named(path):
    with quant.load(path, TWO, **OPTIONS) as net:
        needed = {name: memory.pool for name, memory in net.memory_of.items()}
    with (
        Pool(needed["cudasim"], device="cudasim") as first,
        Pool(needed["cudasim:1"] // 2, device="cudasim:1") as second,
    ):
        with pytest.raises(BudgetError, match=r"cudasim:1: .*pool.*n_gpu_layers") as refusal:
            quant.load(path, TWO, pool=[first, second], tensor_split=[2, 2], **OPTIONS)
        assert refusal.value.smallest_budget > second.budget
        assert first.peak == second.peak == 0
    with pytest.raises(ValueError, match="n_threads"):
        quant.load(path, TWO, n_threads=2, **OPTIONS)


def test_progress_of_loading(path):
    """In bytes that go to devices, to the last one."""
    told = []
    with quant.load(path, "cudasim", progress=lambda *args: told.append(args), **OPTIONS) as net:
        total = net.memory.weights_copied + net.memory.weights_made
    assert told[-1] == (total, total)
    assert all(before <= after for (before, _), (after, _) in itertools.pairwise(told))
