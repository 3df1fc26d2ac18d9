"""Kernels as on lesser CPUs, and that such runs are what they say.

One process a CPU runs all of its tests: helpers that several kernels inline are then compiled once.
"""

import pytest
from lesser_cpus import CPUS, run_tests
from quant_cases import FIRST_OF_STRUCTURE
from test_quantize import KINDS

from quant import formats

FLOATS = tuple(row.name for row in formats.FORMATS.values() if row.is_float)
# Files with every test, then by name. The vector layer:
SIMD = (
    *("test_simd.py", "test_simd_memory.py", "test_simd_pairs.py"),
    *("test_gemm_tile.py", "test_softmax.py"),
)
ATTENTION = tuple(
    f"test_attention.py::test_{name}"
    for name in (
        "random_calls_in_random_budgets[0]",
        "method_steps[write-0]",
        "key_splits_agree_with_float64",
        "half_precision_k_and_v[auto-float16]",
        "half_precision_k_and_v[auto-bfloat16]",
        "unused_cache_slots_may_hold_anything[nan-auto]",
        "nan_and_inf_that_are_attended_to_show[auto]",
        "rows_with_nothing_to_attend_to_are_zero[auto]",
        "quantised_k_and_v[auto]",
        "latent_v_inside_k",
        "any_strides[auto]",
    )
)
FEW_ROWS = (
    *(
        f"test_attention_few.py::test_random_calls[{name}]"
        for name in ("float32", "float16", "bfloat16")
    ),
    "test_attention_few.py::test_left_out_keys_may_hold_anything[nan-float16]",
    "test_attention_few.py::test_splits_merge",
)
# Decoding and quantising are vectors of the same width on every CPU: what differs are the vector layer's operations, of
# which each is held above. Formats of each kind that put them together.
DEQUANTISE = (
    *(
        f"test_dequantize.py::test_bits[{name}-float32]"
        for name in (*FLOATS, *FIRST_OF_STRUCTURE, "Q5_0", "IQ1_M", "TQ1_0")
    ),
    # For each kind of writer:
    *(f"test_dequantize.py::test_bits[{name}-float16]" for name in ("F32", "IQ4_NL", "Q8_0")),
    "test_quant_kv.py::test_fill",
)
QUANTISE = (
    *(
        f"test_quantize.py::test_golden_blocks_are_the_same_bytes[{kind}-{name}]"
        for kind in KINDS
        for name in ("Q8_0", "Q4_0", "IQ4_NL", "Q2_K", "IQ3_S", "IQ1_S", "TQ1_0", "MXFP4")
    ),
    "test_quantize.py::test_iq4_nl_nearest_value_at_every_border",
    "test_quantize.py::test_q8_0_rounds_away_from_zero_at_exact_halves",
)
# Sums of AVX2's products are kept in 16 bits where a format's integers let them: that each does is tried on each. Others
# have 32 bits, which nothing overflows: how they unpack differs by structure. Without SIMD, where LLVM takes seconds for
# each of them, those that the test of a few products compiles, and signed bytes.
PRODUCTS = {
    cpu: (
        "test_matmul.py::test_a_few_products_of_each_form",
        *(f"test_matmul.py::test_extreme_bytes[{name}]" for name in names),
    )
    for cpu, names in {
        "portable": ("Q8_0", "IQ4_NL", "Q2_K", "Q3_K"),
        "avx2": [row.name for row in formats.FORMATS.values() if not row.is_float],
        "avx2 with VNNI": FIRST_OF_STRUCTURE,
    }.items()
}
OPERATIONS = (
    "test_ops.py::test_rows[(5, 67)]",
    "test_ops.py::test_cast[float32-bfloat16]",
    "test_ops.py::test_rope[yarn-adjacent]",
    "test_ops.py::test_rope[yarn-halves]",
    "test_ops.py::test_routing[sigmoid]",
    "test_ops.py::test_scatter[(7, 3, 300)]",
)
EVERY_KERNEL = (*SIMD, *ATTENTION, *FEW_ROWS, *DEQUANTISE, *QUANTISE, *OPERATIONS)
# Of CPUs of one level integer products are all that differs.
OF_CPU = {
    **{cpu: (*EVERY_KERNEL, *PRODUCTS[cpu]) for cpu in ("portable", "avx2")},
    # Its products have a form of their own.
    "avx2 with VNNI": ("test_simd.py::test_dot_u8s8", *PRODUCTS["avx2 with VNNI"]),
    # As today's AVX-512 but for one operation: products with a minimum, with a shift, and with scales as floats alone.
    "avx512 without VNNI": (
        "test_simd.py::test_dot_u8s8",
        *(
            f"test_matmul.py::test_{test}{name}]"
            for name in ("Q2_K", "Q3_K", "IQ4_NL")
            for test in ("bytes_against_float64[7-67-", "one_row_alone[", "extreme_bytes[")
        ),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("cpu", CPUS)
def test_kernels(cpu):
    run_tests(cpu, *(f"cpu/{node}" for node in OF_CPU[cpu]))


# ---------------------------------------------------------------- the helper itself


def test_a_failure_is_one(tmp_path):
    file = tmp_path / "test_fails.py"
    file.write_text("def test_fails():\n    assert 1 == 2\n")
    with pytest.raises(AssertionError, match="1 == 2"):
        run_tests("portable", file)


@pytest.mark.parametrize("lines", ["", "import pytest\ndef test_(): pytest.skip('no')\n"])
def test_no_test_is_a_failure(tmp_path, lines):
    file = tmp_path / "test_none.py"
    file.write_text(lines)
    with pytest.raises(AssertionError):
        run_tests("portable", file)


@pytest.mark.parametrize("cpu", CPUS)
def test_the_level_is_checked(cpu, tmp_path, monkeypatch):
    """If the environment had no effect, the run would fail."""
    file = tmp_path / "test_passes.py"
    file.write_text("def test_passes():\n    pass\n")
    run_tests(cpu, file)
    monkeypatch.setattr(type(CPUS[cpu]), "environment", {})
    with pytest.raises(AssertionError, match="exit status 3"):
        run_tests(cpu, file)
