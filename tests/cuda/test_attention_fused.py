"""The fused attention kernels, on the simulator and (marker gpu) on a GPU."""

import re
from unittest import mock

import numpy as np
import pytest
from attention_calls import (
    DTYPES,
    HALF_BOUND,
    attend,
    check,
    on_device,
    products_by,
    random_operands,
    random_options,
)
from comparison import assert_close
from quant_cases import CHECKED

import lowlevel
from lowlevel import cudasim, devices
from lowlevel.attention.reference import attention_float64
from lowlevel.gpu import instances, layout, loader
from quant import dequantize, quantize

KERNELS = tuple(k for t in (instances.FUSED, instances.WGMMA, instances.MERGE) for k in t.values())
SHAPES = sorted(instances.FUSED_SHAPES)
HEADS = ((1, 1), (2, 2), (4, 2), (6, 1), (5, 5), (12, 4), (3, 1))
TOKENS = (1, 2, 5, 17, 33, 64, 97, 140)
KEYS = (1, 2, 15, 63, 64, 65, 101, 257, 300)


# (d_k, d_v), and whose products the kernel takes for scores without options; see `products_by`
WAYS = [
    (sizes, way)
    for sizes in SHAPES
    for way in (("wgmma", "mma") if sizes in instances.WGMMA_SHAPES else ("mma",))
]


def ways(*sizes):
    """Parametrises a test by `head_sizes`, of these only."""
    some = [way for way in WAYS if way[0] in sizes]
    return pytest.mark.parametrize("head_sizes", some, ids=str, indirect=True)


@pytest.fixture(params=WAYS, ids=str)
def head_sizes(request):
    sizes, way = request.param
    with products_by(way):
        yield sizes


@pytest.fixture(params=["float16", "bfloat16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize(
    "sizes, shape, file",
    [(sizes, shape, "attention_{}_{}.cu") for sizes, shape in instances.FUSED_SHAPES.items()]
    + [
        (sizes, shape, f"attention_{{}}_{{}}_rows_{shape.rows}.cu")
        for sizes, shapes in instances.FEW_ROWS_SHAPES.items()
        for shape in shapes
    ]
    + [
        (sizes, shape, "attention_wgmma_{}_{}.cu")
        for sizes, shape in instances.WGMMA_SHAPES.items()
    ],
    ids=str,
)
def test_tiles_are_those_of_the_sources(sizes, shape, file):
    text = loader.source_text("lowlevel.gpu", file.format(*sizes))
    defined = {}
    for name, value in re.findall(r"#define (\w+) (\d+)", text):
        defined.setdefault(name, int(value))
    names = "HEAD_K HEAD_V TILE_ROWS TILE_KEYS WARPS".split()
    assert re.findall(r"__launch_bounds__\(kThreads, (\w+)\)", text) == [
        "1" if shape.blocks == 1 else "BLOCKS_PER_SM"
    ]
    assert [defined[name] for name in names] == [*sizes, shape.rows, shape.keys, shape.warps]
    assert defined.get("STAGES", instances.WGMMA_STAGES) == instances.WGMMA_STAGES
    assert defined.get("STAGES_K", 1) == shape.k_stages
    assert defined.get("BLOCKS_PER_SM", 1) == shape.blocks


def test_plans_are_made_for_both_kernels_of_a_shape():
    for sizes, shape in instances.WGMMA_SHAPES.items():
        assert shape.rows == instances.FUSED_SHAPES[sizes].rows


def test_random_calls(device, head_sizes, dtype, rng):
    for number in range(4 if head_sizes == (576, 512) else 8):
        n_head, n_head_kv = HEADS[rng.integers(len(HEADS))]
        n_tokens, n_kv = int(rng.choice(TOKENS)), int(rng.choice(KEYS))
        operands = random_operands(rng, n_head, n_head_kv, n_tokens, n_kv, *head_sizes, dtype)
        options = random_options(rng, n_head, n_tokens, n_kv) if number else {}
        order = str(rng.choice(["fifo", "reverse", "random", "lifo"]))
        what = f"{(n_head, n_head_kv, n_tokens, n_kv)} {order}"
        with cudasim.settings(order=order):
            check(device, operands, options, HALF_BOUND, what)


@pytest.mark.parametrize("key", instances.FUSED, ids=str)
def test_every_instance(key, device, launched, rng):
    d_k, d_v, rows, dtype, general = key
    few = rows < instances.FUSED_SHAPES[d_k, d_v].rows
    n_tokens = rows // 2 - 3 if few else 33  # two query heads share a K/V head
    operands = random_operands(rng, 4, 2, n_tokens, 90, d_k, d_v, dtype)
    with products_by("mma"):
        check(device, operands, {"softcap": 30.0} if general else {"window": 70}, HALF_BOUND)
    assert launched == [instances.FUSED[key]]


@pytest.mark.parametrize("key", instances.WGMMA, ids=str)
def test_every_instance_of_warpgroups(key, device, launched, rng):
    """Tiles that all rows see one after another, between ones that the window and causality cut."""
    *sizes, dtype, general = key
    if not devices.get(device).runs(instances.WGMMA[key]):
        pytest.skip("the device has no products of warpgroups")
    q, k, v = random_operands(rng, 4, 2, 70, 1000, *sizes, dtype)
    if np.shares_memory(k, v):
        v = k[..., int(rng.choice([0, 64])) :][..., : sizes[1]]  # whole panels
    options = {"softcap": 30.0} if general else {}
    check(device, [q, k, v], options, HALF_BOUND)
    check(device, [q, k, v], {"causal": False, **options}, HALF_BOUND)
    k[:, :200], v[:, :200] = np.nan, np.inf  # out of every window
    if np.shares_memory(k, v):
        k[:, :200] = np.nan
    options.update(window=700, sinks=np.ones(4, np.float32))
    check(device, [q, k, v], options, HALF_BOUND)
    merges = instances.MERGE.values()  # of latents, whose splits are short
    assert [kernel for kernel in launched if kernel not in merges] == 3 * [instances.WGMMA[key]]


def test_which_kernel(launched, rng):
    """Rows at odd addresses and other devices: the kernels of warp products; few rows: small tiles."""
    operands = random_operands(rng, 2, 1, 33, 40, 64, 64, "float16")
    by_warpgroups, plain = (
        instances.WGMMA[64, 64, "float16", False],
        instances.FUSED[64, 64, 128, "float16", False],
    )
    check("cudasim", operands, {"scale": 0.1}, HALF_BOUND)
    check("cudasim", operands, {"scale": -0.1}, HALF_BOUND)
    lowlevel.attention(*on_device(operands, "cudasim", _apart))
    with mock.patch.object(devices.get("cudasim"), "architecture", "100a"):
        check("cudasim", operands, {}, HALF_BOUND)
    with mock.patch.object(devices.get("cudasim"), "max_shared_bytes", 99 << 10):
        check("cudasim", operands, {}, HALF_BOUND)
        check("cudasim", random_operands(rng, 1, 1, 2, 9, 128, 128, "float16"), {}, HALF_BOUND)
    check("cudasim", random_operands(rng, 2, 1, 17, 9, 192, 128, "float16"), {}, HALF_BOUND)
    general = instances.WGMMA[64, 64, "float16", True]
    few = [
        instances.FUSED[128, 128, 32, "float16", False],
        instances.FUSED[192, 128, 64, "float16", False],
    ]
    assert launched == [by_warpgroups, general, plain, plain, by_warpgroups, *few]


@ways((192, 128), (576, 512))
def test_every_order(head_sizes, dtype, order, rng):
    operands = random_operands(rng, 4, 2, 70, 150, *head_sizes, dtype)
    check("cudasim", operands, random_options(rng, 4, 70, 150), HALF_BOUND)


@ways((64, 64), (576, 512))
@pytest.mark.parametrize("general", [False, True])
def test_checked(general, head_sizes, rng):
    n_tokens, n_kv = (70, 150) if head_sizes == (64, 64) else (17, 100)
    operands = random_operands(rng, 2, 1, n_tokens, n_kv, *head_sizes, "float16")
    options = {"softcap": 20.0} if general else {"window": n_kv - n_tokens}
    if not general:  # the first token sees keys 1 to n_kv - n_tokens
        operands[2][:, 0, 3] = np.nan
    with cudasim.settings(**CHECKED):
        check("cudasim", operands, options, HALF_BOUND)


def test_merge_checked(dtype, launched, rng):
    operands = random_operands(rng, 2, 1, 1, 1030, 64, 64, dtype)
    with cudasim.settings(**CHECKED):
        check("cudasim", operands, {"sinks": np.ones(2, np.float32)}, HALF_BOUND)
    assert instances.MERGE[dtype] in launched


def test_no_keys(device, head_sizes, dtype, rng):
    operands = random_operands(rng, 4, 2, 3, 0, *head_sizes, dtype)
    check(device, operands, {}, HALF_BOUND)
    check(device, operands, {"sinks": np.ones(4, np.float32)}, HALF_BOUND)


def test_more_tokens_than_keys(device, head_sizes, dtype, rng):
    operands = random_operands(rng, 2, 2, 40, 7, *head_sizes, dtype)
    check(device, operands, {}, HALF_BOUND)


@ways((192, 128), (576, 512))
@pytest.mark.parametrize("what", ["causal", "window", "mask"])
def test_left_out_keys_may_hold_anything(device, what, head_sizes, dtype, rng):
    n_tokens, n_kv = 40, 150
    operands = _, k, v = random_operands(rng, 4, 2, n_tokens, n_kv, *head_sizes, dtype)
    options, latent = {}, head_sizes == (576, 512)  # infinities of V in K make scores infinite, too
    if what == "causal":  # keys that only some rows may see
        k[:, 140:], v[:, 140:], v[0, 139, 5] = np.inf, np.nan, np.nan if latent else -np.inf
    elif what == "window":
        options = dict(causal=False, window=20)
        k[:, :80], v[:, :80] = np.nan, np.inf
    else:
        options["mask"] = np.zeros((n_tokens, n_kv), np.float32)
        options["mask"][:, 30:60] = -np.inf
        options["mask"][5:, 100] = -np.inf
        k[:, 30:60], v[:, 30:60] = np.nan, np.nan
        v[:, 100, 3], v[1, 100, 7] = np.nan if latent else np.inf, np.nan
    check(device, operands, options, HALF_BOUND)


def _apart(x, device):
    """`x` on a device as a view with odd strides and an odd start."""
    n_head, n_rows, d = x.shape
    memory = np.zeros((n_rows, n_head, d + 3), x.dtype)
    memory[..., 1 : 1 + d] = x.transpose(1, 0, 2)
    return lowlevel.asarray(memory, device).transpose(1, 0, 2)[..., 1 : 1 + d]


def test_any_strides(device, head_sizes, dtype, rng):
    operands = random_operands(rng, 4, 2, 40, 101, *head_sizes, dtype)
    out = _apart(np.full((4, 40, head_sizes[1]), np.nan, np.float32), device)
    q, k, v = on_device(operands, device, _apart)
    assert lowlevel.attention(q, k, v, out=out) is out
    assert_close(lowlevel.asnumpy(out), attention_float64(*operands), HALF_BOUND)


@pytest.mark.parametrize("sizes", [(64, 64), (576, 512)], ids=str)
def test_any_strides_checked(sizes, monkeypatch, rng):
    """Rows at odd addresses, which are not copied asynchronously; one tile of K in shared memory."""
    monkeypatch.setattr(devices.get("cudasim"), "max_shared_bytes", 163 << 10)
    operands = random_operands(rng, 2, 1, 9, 130, *sizes, "bfloat16")
    out = _apart(np.full((2, 9, sizes[1]), np.nan, np.float32), "cudasim")
    with cudasim.settings(**CHECKED):
        lowlevel.attention(*on_device(operands, "cudasim", _apart), out=out)
    assert_close(lowlevel.asnumpy(out), attention_float64(*operands), 2 * HALF_BOUND)


def test_broadcast_heads(device, way, dtype, rng):
    """Zero strides: one K/V head seen as four."""
    q, k, v = random_operands(rng, 4, 1, 70, 70, 64, 64, dtype)
    q, k, v = on_device((q, k, v), device)
    expected = lowlevel.asnumpy(lowlevel.attention(q, k, v))
    stretch = lambda x: x[np.zeros(4, int)]  # noqa: E731
    again = lowlevel.asnumpy(lowlevel.attention(q, stretch(k), stretch(v)))
    np.testing.assert_array_equal(again, expected)


def test_16_bit_output(device, head_sizes, dtype, rng):
    operands = random_operands(rng, 4, 2, 40, 101, *head_sizes, dtype)
    out = lowlevel.attention(*on_device(operands, device))
    assert out.dtype == DTYPES[dtype]
    actual = lowlevel.asnumpy(out).astype(np.float64)
    assert_close(actual, attention_float64(*operands), HALF_BOUND + 2.0**-8)


@pytest.mark.parametrize("kind", ["dense", "Q8_0"])
def test_output_of_any_type(device, head_sizes, dtype, kind, rng):
    """The kernels write float32 and q's type; the other 16-bit type goes by tiles."""
    operands = random_operands(rng, 4, 2, 5, 101, *head_sizes, dtype)
    if kind == "Q8_0":
        if np.shares_memory(*operands[1:]):
            pytest.skip("V lies in K: dense only here")
        operands[1:] = (quantize(x.astype(np.float32), kind) for x in operands[1:])
    q, k, v = operands
    there = (
        on_device(operands, device)
        if kind == "dense"
        else [lowlevel.asarray(q, device), k.to(device), v.to(device)]
    )
    expected = attention_float64(q, *(operands[1:] if kind == "dense" else map(dequantize, (k, v))))
    # The fused kernels decode K and V into q's type, which rounds both once more.
    decoded = 0 if kind == "dense" else 2.0**-8
    for of_out in DTYPES.values():
        out = lowlevel.asarray(np.full(expected.shape, np.nan, of_out), device)
        assert lowlevel.attention(*there, out=out) is out
        assert_close(
            lowlevel.asnumpy(out).astype(np.float64),
            expected,
            HALF_BOUND + 2.0**-8 + decoded,
            of_out,
        )


def test_splits_of_keys(device, way, dtype, launched, rng):
    """Few rows over many keys: the keys are split, the scratch is the plan's, smaller budgets do."""
    operands = random_operands(rng, 4, 2, 3, 2100, 64, 64, dtype)
    sizes = dict(n_head=4, n_head_kv=2, n_tokens=3, n_kv=2100, d_k=64, d_v=64, device=device)
    types = dict(q_dtype=dtype, kv_dtype=dtype)
    plan = lowlevel.plan_attention(**sizes, **types)
    assert plan.n_splits == 4 and plan.scratch_bytes > 0
    for budget in (plan.scratch_bytes, plan.scratch_bytes - 1, 0):
        options = {"sinks": rng.normal(0, 1, 4).astype(np.float32), "window": 1500}
        check(device, operands, options, HALF_BOUND, budget=budget)
    assert instances.MERGE[dtype] in launched


def test_splits_of_rows_that_see_nothing(device, way, dtype, launched, rng):
    """No split has a key for some rows, and some splits have none for others."""
    operands = random_operands(rng, 4, 2, 3, 2100, 64, 64, dtype)
    mask = np.zeros((3, 2100), np.float32)
    mask[1], mask[2, :1900] = -np.inf, -np.inf
    operands[2][:, :700] = np.nan
    mask[0, :700] = -np.inf
    check(device, operands, {"mask": mask}, HALF_BOUND)
    check(device, operands, {"mask": mask, "sinks": np.full(4, 0.5, np.float32)}, HALF_BOUND)
    assert instances.MERGE[dtype] in launched


def test_keys_are_split_for_the_blocks_that_a_multiprocessor_has_at_work():
    """One of warpgroups, two of the others: 128 tiles fill 132 multiprocessors once or half."""
    sizes = dict(n_head=32, n_head_kv=8, n_tokens=512, n_kv=32768, d_k=128, d_v=128, n_threads=132)
    types = dict(q_dtype="float16", kv_dtype="float16", out_dtype="float16", device="cudasim")
    assert lowlevel.plan_attention(**sizes, **types).n_splits == 1
    with mock.patch.object(devices.get("cudasim"), "architecture", "80a"):
        assert lowlevel.plan_attention(**sizes, **types).n_splits == 2


def test_packed_heads_leave_few_rows_empty():
    assert layout.packed_heads(16, 1, 128) == 16
    assert layout.packed_heads(128, 1, 64) == 64
    assert layout.packed_heads(8, 2048, 128) == 8
    # 48 heads: 2 tokens would leave a quarter of the rows empty
    heads = layout.packed_heads(48, 2048, 128)
    assert -(-48 // heads) * -(-2048 // (128 // heads)) <= 48 * 2048 / 128 * 1.02


def test_states_of_parts_of_the_keys_merge(device, way, rng):
    operands = random_operands(rng, 4, 2, 9, 200, 64, 64, "float16")
    expected = attention_float64(*operands, causal=False)
    q, k, v = on_device(operands, device)
    parts = [
        lowlevel.attention(q, k[:, keys], v[:, keys], causal=False, return_lse=True)
        for keys in (slice(0, 70), slice(70, 200))
    ]
    out, lse = lowlevel.merge_states(*zip(*parts, strict=True))
    assert devices.of_array(out, "out").name == devices.of_array(lse, "lse").name == device
    assert_close(lowlevel.asnumpy(out).astype("f8"), expected, HALF_BOUND)


@pytest.mark.parametrize("n_head", [16, 128])
def test_latent_heads_are_packed(device, n_head, dtype, rng):
    """One K/V head; the last token alone, and some tokens."""
    for n_tokens in (1, 3):
        operands = random_operands(rng, n_head, 1, n_tokens, 130, 576, 512, dtype)
        check(device, operands, {}, HALF_BOUND, f"{n_tokens} tokens")


def test_latent_with_one_stage(dtype, monkeypatch, rng):
    """As on devices with less shared memory."""
    monkeypatch.setattr(devices.get("cudasim"), "max_shared_bytes", 163 << 10)
    for options in ({}, {"window": 90, "softcap": 5.0}):
        operands = random_operands(rng, 16, 1, 9, 200, 576, 512, dtype)
        check("cudasim", operands, options, HALF_BOUND)


def test_latent_by_tiles_where_shared_memory_is_small(monkeypatch, launched, rng):
    monkeypatch.setattr(devices.get("cudasim"), "max_shared_bytes", 99 << 10)
    operands = random_operands(rng, 4, 1, 3, 20, 576, 512, "float16")
    check("cudasim", operands, {}, HALF_BOUND)
    assert not set(launched) & set(instances.FUSED.values())


def test_same_bits_again(device, way, dtype, rng):
    operands = random_operands(rng, 4, 2, 70, 150, 192, 128, dtype)
    first, second = (attend(device, operands, {})[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_plans_name_their_kernels():
    """Family, tile, heads that share one, splits and stages; what runs obeys `path` (see `launched` above)."""

    def planned(n_tokens, d_k, d_v, n_head_kv=8, **options):
        sizes = dict(n_head=32, n_head_kv=n_head_kv, n_tokens=n_tokens, n_kv=4096, d_k=d_k, d_v=d_v)
        given = dict(q_dtype="float16", kv_dtype="float16", out_dtype="float16", device="cudasim")
        data = lowlevel.plan_attention(**sizes, **given | options).to_dict()
        return {name: data[name] for name in ("path", "heads", "rows", "keys", "stages")}

    wgmma = dict(path="fused wgmma", stages=2, keys=128)
    latent = dict(n_head_kv=1, v_in_k=True)
    assert planned(512, 128, 128) == wgmma | dict(heads=4, rows=32)
    assert planned(512, 576, 512, **latent) == wgmma | dict(heads=32, rows=2, keys=64)
    few = planned(1, 192, 128)
    assert few == dict(path="fused few rows", heads=4, rows=1, keys=64, stages=1)
    with products_by("mma"):
        mma = dict(path="fused mma.sync", keys=64)
        assert planned(512, 64, 64) == mma | dict(heads=4, rows=32, stages=2)
        assert planned(512, 576, 512, **latent) == mma | dict(heads=32, rows=2, stages=2)
    assert planned(512, 128, 128)["path"] == "fused wgmma"
    # What is decoded is so for passes of many groups; a tile has heads of one.
    sizes = dict(n_head=32, n_head_kv=8, n_tokens=1, n_kv=4096, d_k=128, d_v=128, q_dtype="float16")
    sizes |= dict(kv_dtype="Q8_0", out_dtype="float16", device="cudasim")
    decoded = lowlevel.plan_attention(**sizes)
    assert decoded.heads == 32 and decoded.packed_heads == 4
    float32 = dict(q_dtype="float32", kv_dtype="float32", out_dtype="float32")
    assert planned(64, 128, 128, **float32)["path"] == "tiles"
