"""Pipelines of u-batches: how long devices wait, and the source's machine line by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.models.occupancy import begins, pipeline, split_by_work
from tools import source_machine


def test_equal_work_waits_for_the_pipeline_to_fill():
    found = pipeline([[1.0] * 4] * 12)
    assert found.seconds == 15 and found.busy == (12,) * 4
    assert found.bubble == pytest.approx(3 / 15) and found.speedup == pytest.approx(48 / 15)
    assert pipeline([[1.0] * 4] * 12, hop=0.5).seconds == 16.5


def test_the_busiest_device_sets_the_pace():
    assert pipeline([[1.0, 3.0, 1.0]] * 5).seconds == 1 + 5 * 3 + 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_no_split_has_a_less_busy_device(work, n):
    found = split_by_work(work, n)
    assert [layer for own in found for layer in own] == list(range(len(work))) and len(found) == n

    def least(start, left):
        """By trying all."""
        if left == 1:
            return sum(work[start:])
        stops = range(start, len(work) + 1)
        return min(max(sum(work[start:stop]), least(stop, left - 1)) for stop in stops)

    assert max(sum(work[layer] for layer in own) for own in found) == least(0, n)


def test_the_sources_machine():
    """Layers and cache as its log has them, weights within 0.3 %, and a quarter of its compute buffers."""
    ours = source_machine.planned()
    assert [len(own["layers"]) for own in ours] == [6] + [4] * 13 + [3]
    mib = source_machine.MIB
    weights = [12615.77, *[15965.27] * 13, 12698.93]
    for own, of_log in zip(ours, weights, strict=True):
        assert own["weights"] / mib == pytest.approx(of_log, rel=3e-3)
        assert own["kv"] == 180 * mib * len(own["layers"])
        assert own["compute"] < 5088 * mib / 4 and own["total"] < source_machine.VRAM


def test_the_pipeline_is_drawn(tmp_path):
    """A device begins when it is handed rows, or is done with the u-batch before."""
    assert begins([[1.0, 3.0], [2.0, 1.0]], hop=0.5) == [[0, 1.5], [1, 4.5]]
    path = tmp_path / "occupancy.png"
    source_machine.draw([[0, 1, 2], [3, 4], [60]], str(path), n_tokens=4096)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_a_text_that_is_no_log_is_refused(tmp_path, capsys):
    path = tmp_path / "log.txt"
    path.write_text("llm_load_tensors:      CUDA0 buffer size = 12615.77 MiB\n")
    assert source_machine.main([str(path)]) == 2
    assert "no weights lines of 15 devices" in capsys.readouterr().err
