"""Every instruction of ptx.cuh against its fragment layout, written out here from the PTX ISA.

The same kernels and the same checks run on a GPU where there is one (marker gpu): they are the
first to run there, because everything else rests on them.
"""

import numpy as np
import pytest

LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4


@pytest.fixture
def seam(anywhere):
    return lambda name: anywhere("seam.cu", name)


@pytest.mark.parametrize("n_matrices", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(seam, rng, n_matrices, transposed):
    matrices = rng.integers(0, 1 << 16, (n_matrices, 8, 8)).astype(np.uint16)
    registers = np.zeros((32, n_matrices), np.uint32)
    name = f"ldmatrix_x{n_matrices}{'_trans' if transposed else ''}_kernel"
    rows = matrices.reshape(-1, 8).view(np.uint32)
    seam(name)((1,), (32,), (rows, registers))
    source = matrices.transpose(0, 2, 1) if transposed else matrices
    # Lane l: values 2 (l % 4) and the next of row l // 4 of each matrix.
    pairs = registers.view(np.uint16).reshape(32, n_matrices, 2)
    for half in range(2):
        np.testing.assert_array_equal(pairs[:, :, half], source[:, GROUP, 2 * IN_GROUP + half].T)


def _fragments(a, b, per_register):
    """Registers (32, 4) and (32, 2) of A (16, k) and B (k, 8); k is 8 * per_register."""
    words_a = np.ascontiguousarray(a).view(np.uint32)  # (16, 8)
    words_b = np.ascontiguousarray(b.T).view(np.uint32)  # (8, 8): a row is a column of B
    assert words_a.shape == (16, 8) and words_b.shape == (8, 8)
    k = IN_GROUP
    registers_a = [words_a[GROUP, k], words_a[GROUP + 8, k]]
    registers_a += [words_a[GROUP, k + 4], words_a[GROUP + 8, k + 4]]
    registers_b = [words_b[GROUP, k], words_b[GROUP, k + 4]]
    return np.stack(registers_a, 1), np.stack(registers_b, 1)


def _accumulators(d):
    """(32, 4) registers of D (16, 8), and back with the indices."""
    rows = np.stack([GROUP, GROUP, GROUP + 8, GROUP + 8], 1)
    columns = np.stack([2 * IN_GROUP, 2 * IN_GROUP + 1] * 2, 1)
    return np.ascontiguousarray(d[rows, columns]), rows, columns


def _bfloat16_bits(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32", "s8"])
def test_mma(seam, rng, kind):
    k = {"f16": 16, "bf16": 16, "tf32": 8, "s8": 32}[kind]
    if kind == "s8":
        a = rng.integers(-128, 128, (16, k)).astype(np.int8)
        b = rng.integers(-128, 128, (k, 8)).astype(np.int8)
        d = rng.integers(-(2**20), 2**20, (16, 8)).astype(np.int32)
        exact, stored = d + a.astype(np.int64) @ b.astype(np.int64), (a, b)
    else:
        # Values that each type holds exactly.
        a, b = (rng.integers(-60, 60, shape).astype(np.float32) / 8 for shape in ((16, k), (k, 8)))
        d = rng.standard_normal((16, 8)).astype(np.float32)
        exact = d + a.astype(np.float64) @ b.astype(np.float64)
        convert = {
            "f16": lambda x: x.astype(np.float16),
            "bf16": _bfloat16_bits,
            "tf32": lambda x: x,
        }
        stored = convert[kind](a), convert[kind](b)
    registers_a, registers_b = _fragments(*stored, 32 // k)
    held, rows, columns = _accumulators(d)
    shape = {
        "f16": "m16n8k16_f16",
        "bf16": "m16n8k16_bf16",
        "tf32": "m16n8k8_tf32",
        "s8": "m16n8k32_s8",
    }
    seam(f"mma_{shape[kind]}_kernel")((1,), (32,), (registers_a, registers_b, held))
    if kind == "s8":
        np.testing.assert_array_equal(held, exact[rows, columns])
    else:
        np.testing.assert_allclose(held, exact[rows, columns], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("missing", [0, 1, 3, 4])
def test_cp_async(seam, rng, missing):
    source = rng.integers(0, 1 << 32, (32, 8), dtype=np.uint32)
    result = np.zeros_like(source)
    seam("cp_async_kernel")((1,), (32,), (source, result, np.int32(missing)))
    expected = source[::-1].copy()
    if missing:
        raw = expected.view(np.uint8).reshape(32, 32)
        for end in (16, 24, 28):
            raw[:, end - missing : end] = 0
    np.testing.assert_array_equal(result, expected)


def test_store_16(seam, rng):
    source = rng.integers(0, 1 << 32, (32, 4), dtype=np.uint32)
    result = np.zeros_like(source)
    seam("store_16_kernel")((1,), (32,), (source, result))
    np.testing.assert_array_equal(result, source[::-1])


def test_named_barriers(seam):
    result = np.zeros(32, np.int32)
    seam("named_barrier_kernel")((1,), (96,), (result,))
    np.testing.assert_array_equal(result, 3 * (31 - LANES))


def test_approximations(seam, rng):
    x = np.concatenate([rng.uniform(-20, 20, 27), [0, -130, 1, -0.0, -200]]).astype(np.float32)
    exp2, tanh, tf32 = np.zeros(32, np.float32), np.zeros(32, np.float32), np.zeros(32, np.uint32)
    seam("approx_kernel")((1,), (32,), (x, exp2, tanh, tf32))
    exact = np.exp2(x.astype(np.float64))
    np.testing.assert_allclose(exp2, np.where(exact < 2.0**-126, 0, exact), rtol=3e-7)
    np.testing.assert_allclose(tanh, np.tanh(x), rtol=2.0**-10.9)
    np.testing.assert_array_equal(tf32, (x.view(np.uint32) + 0x1000) & 0xFFFFE000)


def test_permute(seam, rng):
    """Selectors of any bits: the upper 16 say nothing, a nibble's top bit asks for a sign."""
    a, b, selectors = (rng.integers(0, 2**32, 32, dtype=np.uint32) for _ in range(3))
    found, found_or_signs = (np.zeros(32, np.uint32) for _ in range(2))
    seam("permute_kernel")((1,), (32,), (a, b, selectors, found, found_or_signs))
    eight = np.stack([a, b], axis=1).view(np.uint8)
    nibbles = selectors[:, None] >> (4 * np.arange(4, dtype=np.uint32)) & 15
    chosen = np.take_along_axis(eight, (nibbles & 7).astype(np.intp), axis=1)
    signs = np.where(chosen >= 128, 255, 0).astype(np.uint8)
    assert np.array_equal(found, chosen.view(np.uint32)[:, 0])
    or_signs = np.where(nibbles >= 8, signs, chosen)
    assert np.array_equal(found_or_signs, or_signs.view(np.uint32)[:, 0])
