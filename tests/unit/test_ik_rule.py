"""ik_llama.cpp's rule against every number that its pull request and FACTS.md section 1 give."""

import random

import pytest

from quant.models.ik_rule import MIB, ik_steps

R1 = dict(n_head=128, mla=True)
LITE = dict(n_head=16, mla=True)


@pytest.mark.parametrize(
    "n_kv, n_steps, heads", [(8192, 1, 128), (16000, 2, 64), (24000, 3, 43), (163000, 20, 7)]
)
def test_the_pull_requests_examples(n_kv, n_steps, heads):
    steps = ik_steps(n_tokens=512, n_kv=n_kv, amb_mib=2048, **R1)
    assert (steps.n_steps, steps.heads) == (n_steps, heads)


def test_the_full_context_overshoots():
    steps = ik_steps(n_tokens=512, n_kv=163000, amb_mib=2048, **R1)
    assert steps.kq_mib == 40750
    assert steps.kq_bytes // MIB == 2228
    assert steps.overshoot_bytes == 7 * 163000 * 512 * 4 - 2048 * MIB
    assert steps.n_launches == 19  # 18 x 7 + 2: the formula's 20 are not all needed


def test_one_token_fits():
    steps = ik_steps(n_tokens=1, n_kv=163000, amb_mib=2048, **R1)
    assert (steps.kq_mib, steps.n_steps, steps.heads, steps.overshoot_bytes) == (79, 1, 128, 0)


# Compute buffers measured on CPU builds, MiB: their differences are those of the K*Q
@pytest.mark.parametrize(
    "model, n_kv, n_tokens, buffers",
    [
        (LITE, 16384, 2048, {64: 513, 128: 513, 256: 641, 512: 889, 1024: 1353, 2048: 2377}),
        (LITE, 163840, 2048, {64: 2981, 512: 2981, 1024: 2981, 2048: 4257}),
        (R1, 163840, 512, {256: 1278, 512: 1598, 1024: 2236, 2048: 3184}),
        (R1, 163840, 2048, {256: 4633, 512: 4633, 1024: 4633, 2048: 5913}),
    ],
)
def test_measured_compute_buffers_grow_as_the_rule_says(model, n_kv, n_tokens, buffers):
    steps = {amb: ik_steps(n_kv=n_kv, n_tokens=n_tokens, amb_mib=amb, **model) for amb in buffers}
    least = min(buffers)
    half_a_head = n_kv * n_tokens * 4 / MIB / 2  # other intermediates shift a little, too
    for amb, buffer in buffers.items():
        grown = (steps[amb].kq_bytes - steps[least].kq_bytes) / MIB
        assert grown == pytest.approx(buffer - buffers[least], rel=0, abs=half_a_head), amb


def test_values_under_128_count_as_128():
    low, least = (ik_steps(n_tokens=64, n_kv=16384, amb_mib=a, **R1) for a in (1, 128))
    assert (
        (low.n_steps, low.heads, low.amb_mib) == (least.n_steps, least.heads, 128) == (4, 32, 128)
    )
    assert low.overshoot_bytes == 127 * MIB and least.overshoot_bytes == 0


def test_sizes_are_cut_off_to_mib():
    # 256.99 MiB passes as 256
    n_kv = 269480512 // (512 * 4)
    steps = ik_steps(n_head=1, n_tokens=512, n_kv=n_kv, amb_mib=256, mla=True)
    assert steps.n_steps == 1 and 0 < steps.overshoot_bytes < MIB


def test_no_cap():
    steps = ik_steps(n_tokens=2048, n_kv=163840, amb_mib=0, **R1)
    assert (steps.n_steps, steps.heads, steps.overshoot_bytes, steps.reason) == (1, 128, 0, "")
    with pytest.raises(ValueError, match="amb_mib"):
        ik_steps(n_tokens=1, n_kv=1, amb_mib=-1, **R1)


def test_standard_path_is_all_or_one_head():
    whole = ik_steps(n_head=32, n_tokens=512, n_kv=16384, amb_mib=1024)
    split = ik_steps(n_head=32, n_tokens=512, n_kv=16384, amb_mib=1023)
    assert (whole.n_steps, whole.heads) == (1, 32)
    assert (split.n_steps, split.heads, split.n_launches) == (32, 1, 32)


@pytest.mark.parametrize("options", [dict(n_head_kv=8), dict(sinks=True)])
def test_grouped_heads_and_sinks_are_never_split(options):
    steps = ik_steps(n_head=32, n_tokens=512, n_kv=16384, amb_mib=256, **options)
    assert (steps.n_steps, steps.heads) == (1, 32)
    assert steps.overshoot_bytes == (1024 - 256) * MIB and "never split" in steps.reason
    fits = ik_steps(n_head=32, n_tokens=512, n_kv=16384, amb_mib=1024, **options)
    assert fits.reason == ""


def test_properties():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(2000):
        n_head, n_tokens = rng.randint(1, 200), rng.randint(1, 4096)
        n_kv, amb = rng.randint(1, 2**18), rng.randint(0, 5000)
        steps = ik_steps(
            n_head=n_head, n_tokens=n_tokens, n_kv=n_kv, amb_mib=amb, mla=rng.random() < 0.5
        )
        assert 1 <= steps.heads <= n_head and steps.n_launches <= steps.n_steps
        assert (steps.n_launches - 1) * steps.heads < n_head <= steps.n_launches * steps.heads
        if steps.heads > 1 and amb:  # at most twice the cap, and the fraction of a MiB cut off
            assert steps.kq_bytes < 2 * (steps.amb_mib + 1) * MIB
