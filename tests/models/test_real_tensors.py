"""Every tensor of real model files, bit for bit what the gguf package makes of it."""

import gguf
import numpy as np
import pytest
import real_files
from quant_cases import assert_same_bits

import quant
from quant import dequantize

# file -> (tensors, types that they have)
CONTENTS = {
    real_files.SMOLLM2_135M: (272, {"F32", "Q4_1", "Q8_0"}),
    real_files.GEMMA3_270M: (236, {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}),
}
# Weights that are decoded at a time: the gguf package takes many times their memory.
SLAB_WEIGHTS = 1 << 22


@pytest.mark.real_model
@pytest.mark.parametrize("file", CONTENTS, ids=lambda file: file.name)
def test_every_tensor_is_the_gguf_packages(file):
    n_tensors, types = CONTENTS[file]
    path = real_files.real_file(file)
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
