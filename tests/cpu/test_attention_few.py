"""Attention of few query rows (decoding): K and V of every type in place and decoded, and every option."""

import ml_dtypes
import numpy as np
import pytest
from attention_cases import FLOAT32_BOUND, random_mask
from comparison import assert_close

import lowlevel
import quant
from lowlevel.attention.reference import attention_float64
from lowlevel.cpu import attention_few, layout

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
GROUPS = (1, 2, 3, 4, 5, 7, 8)
KEYS = (1, 2, 7, 8, 15, 17, 255, 256, 257, 700)
# In place, and not: no whole vectors of K, of V.
DEPTHS = ((192, 128), (64, 64), (128, 32), (96, 160), (48, 96), (40, 64), (64, 24), (7, 5), (1, 1))


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


def random_rows(rng, heads, n, d, dtype):
    """Rows at odd distances, of heads at odd distances."""
    memory = rng.standard_normal((heads, n + 1, d + 3), dtype=np.float32).astype(dtype)
    return memory[:, 1:, 2:-1]


def random_options(rng, n_head, n_tokens, n_kv):
    options = dict(causal=bool(rng.random() < 0.5), sinks=None)
    if rng.random() < 0.3:
        options["window"] = int(rng.integers(1, n_kv + 5))
    if rng.random() < 0.3:
        options["softcap"] = 5.0
    if rng.random() < 0.3:
        options["alibi_slopes"] = rng.uniform(0, 0.5, n_head).astype(np.float32)
    if rng.random() < 0.3:
        options["sinks"] = rng.normal(0, 2, n_head).astype(np.float32)
    if rng.random() < 0.2:
        options["scale"] = float(rng.choice([0.05, -0.05, 0.0]))
    if rng.random() < 0.4:
        mask = random_mask(rng, n_head, n_tokens, n_kv)
        options["mask"] = mask if rng.random() < 0.5 else _spread(mask)
    return options


def _spread(mask):
    """The same values two apart."""
    wide = np.zeros((*mask.shape[:-1], 2 * mask.shape[-1]), np.float32)
    wide[..., ::2] = mask
    return wide[..., ::2]


@pytest.fixture
def kernels(monkeypatch):
    """Types whose kernels were called."""
    called = []

    class Recorded:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        @property
        def address(self):
            called.append(self.name)
            return self.kernel.address

    few = {name: Recorded(name, kernel) for name, kernel in attention_few.ATTEND_FEW.items()}
    monkeypatch.setattr(attention_few, "ATTEND_FEW", few)
    return called


@pytest.mark.parametrize("name", TYPES)
def test_random_calls(rng, name, kernels):
    for _ in range(150):
        group, n_head_kv = int(rng.choice(GROUPS)), int(rng.integers(1, 4))
        n_tokens = int(rng.integers(1, layout.FEWEST_ROWS // group + 1))
        n_head, n_kv = group * n_head_kv, int(rng.choice(KEYS))
        d_k, d_v = DEPTHS[rng.integers(len(DEPTHS))]
        q = rng.standard_normal((n_head, n_tokens, d_k), dtype=np.float32)
        k = random_rows(rng, n_head_kv, n_kv, d_k, TYPES[name])
        v = random_rows(rng, n_head_kv, n_kv, d_v, TYPES[name])
        options = random_options(rng, n_head, n_tokens, n_kv)
        out, lse = lowlevel.attention(
            q, k, v, n_threads=int(rng.integers(1, 4)), return_lse=True, **options
        )
        in_place = d_k % layout.LINE == 0 and d_v % layout.PANEL == 0
        assert set(kernels) == {name if in_place else "float32"}
        kernels.clear()
        wide = np.float32(k), np.float32(v)
        reference, reference_lse = attention_float64(q, *wide, return_lse=True, **options)
        about = f"{q.shape} {k.shape} {v.shape} {sorted(options)}"
        assert_close(out, reference, 4 * FLOAT32_BOUND, about)
        assert_close(lse, reference_lse, FLOAT32_BOUND, f"lse {about}", least=1)


@pytest.mark.parametrize("name", TYPES)
def test_every_number_of_keys_and_rows(rng, name):
    """Ends of chunks, of pairs of keys and of groups of rows; nothing past K's and V's rows is used."""
    for n_kv in (*range(1, 35), *range(250, 262)):
        for rows in (1, 2, 5):
            q = rng.standard_normal((rows, 1, 64), dtype=np.float32)
            memory = np.full((2, n_kv + 2, 96), np.nan, TYPES[name])
            k, v = memory[0, 1:-1, 16:80][None], memory[1, 1:-1, 32:64][None]
            k[...] = rng.standard_normal(k.shape)
            v[...] = rng.standard_normal(v.shape)
            out = lowlevel.attention(q, k, v, n_threads=1)
            reference = attention_float64(q, np.float32(k), np.float32(v))
            assert_close(out, reference, FLOAT32_BOUND, f"{n_kv} keys, {rows} rows")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_left_out_keys_may_hold_anything(rng, name, bad):
    for group in (1, 3, 8):
        q = rng.standard_normal((2 * group, 1, 64), dtype=np.float32)
        k, v = (random_rows(rng, 2, 600, 64, TYPES[name]) for _ in range(2))
        kept = rng.random(600) < 0.6
        clean = np.array(k, np.float32), np.array(v, np.float32)
        k[:, ~kept], v[:, ~kept] = bad, bad
        mask = np.where(kept, np.float32(0), np.float32(-np.inf))[None]
        out = lowlevel.attention(q, k, v, mask=mask)
        assert_close(out, attention_float64(q, *clean, mask=mask), FLOAT32_BOUND)
        k[...], v[...] = np.asarray(clean)
        k[:, :400], v[:, :400] = bad, bad  # before the window
        out = lowlevel.attention(q, k, v, window=200)
        assert_close(out, attention_float64(q, *clean, window=200), FLOAT32_BOUND)
        v[:, -1] = bad  # attended to
        shown = lowlevel.attention(q, k, v, window=200)
        expected = bad if np.isinf(bad) else np.nan
        np.testing.assert_array_equal(shown, np.full_like(shown, expected))


@pytest.mark.parametrize("qtype", ["Q8_0", "IQ4_NL", "Q4_0"])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_quantised_k_and_v(rng, qtype, group):
    q = rng.standard_normal((2 * group, 1, 96), dtype=np.float32)
    k, v = (
        quant.quantize(rng.standard_normal((2, 333, 96), dtype=np.float32), qtype) for _ in range(2)
    )
    out = lowlevel.attention(q, k, v)
    reference = attention_float64(q, quant.dequantize(k), quant.dequantize(v))
    assert_close(out, reference, FLOAT32_BOUND)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("column", [0, 32, 9])
def test_latent_v_inside_k(rng, name, column):
    q = rng.standard_normal((5, 1, 96), dtype=np.float32)
    k = random_rows(rng, 1, 300, 96, TYPES[name])
    v = k[..., column : column + 64]
    out = lowlevel.attention(q, k, v)
    assert_close(out, attention_float64(q, np.float32(k), np.float32(v)), FLOAT32_BOUND)


def test_splits_merge(rng):
    q = rng.standard_normal((4, 1, 64), dtype=np.float32)
    k, v = (rng.standard_normal((1, 6000, 64), dtype=np.float32).astype(np.float16) for _ in "kv")
    sizes = dict(n_head=4, n_head_kv=1, n_tokens=1, n_kv=6000, d_k=64, d_v=64, n_threads=3)
    plan = lowlevel.plan_attention(**sizes, kv_dtype="float16")
    assert plan.n_splits > 1
    out = lowlevel.attention(q, k, v, plan=plan)
    assert_close(out, attention_float64(q, np.float32(k), np.float32(v)), FLOAT32_BOUND)


def test_small_budgets(rng):
    """Any tile of few rows that a plan may choose has room for its scores."""
    q = rng.standard_normal((8, 1, 64), dtype=np.float32)
    k, v = (rng.standard_normal((1, 300, 64), dtype=np.float32).astype(np.float16) for _ in "kv")
    reference = attention_float64(q, np.float32(k), np.float32(v))
    sizes = dict(n_head=8, n_head_kv=1, n_tokens=1, n_kv=300, d_k=64, d_v=64)
    types = dict(kv_dtype="float16", n_threads=1)
    budget, tiles = lowlevel.plan_attention(**sizes, **types).scratch_bytes, set()
    while True:
        try:
            plan = lowlevel.plan_attention(**sizes, **types, budget=budget)
        except lowlevel.BudgetError:
            break
        tiles.add((plan.heads, plan.rows, plan.keys))
        budget = plan.scratch_bytes - 1
        with lowlevel.Pool(plan.scratch_bytes) as pool:
            out = lowlevel.attention(q, k, v, pool=pool, n_threads=1)
            assert pool.peak <= plan.scratch_bytes
        assert_close(out, reference, FLOAT32_BOUND, str(plan))
    assert {8, 24, 256} & {keys for _, _, keys in tiles} and len(tiles) > 4


def test_more_rows_are_others_work(rng, kernels):
    q = rng.standard_normal((layout.FEWEST_ROWS + 1, 1, 64), dtype=np.float32)
    k = rng.standard_normal((1, 40, 64), dtype=np.float32)
    lowlevel.attention(q, k, k)
    assert not kernels
