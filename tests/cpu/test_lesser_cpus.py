"""Attention as on lesser CPUs, and that such runs are what they say."""

import pytest
from lesser_cpus import CPUS, LESSER_CPUS, run_tests

ATTENTION = (
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


@pytest.mark.parametrize("cpu", LESSER_CPUS)
def test_attention(cpu):
    run_tests(cpu, *(f"cpu/test_attention.py::test_{name}" for name in ATTENTION))


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
