"""Real model files: every tensor bit for bit what the gguf package makes of it, and of the type that our mix says."""

import gguf
import numpy as np
import pytest
from quant_cases import assert_same_bits
from real_files import GEMMA3_270M, SMOLLM2_135M, real_file

import quant
from quant import dequantize
from quant.models.named_geometries import named_geometry
from quant.models.synthetic.make_gguf import plan_tensors

# Weights that are decoded at a time: the gguf package takes many times their memory.
SLAB_WEIGHTS = 1 << 22


@pytest.mark.real_model
@pytest.mark.parametrize(
    "file, n_tensors, types",
    [
        (SMOLLM2_135M, 272, {"F32", "Q4_1", "Q8_0"}),
        (GEMMA3_270M, 236, {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_tensor_is_the_gguf_packages(file, n_tensors, types):
    path = real_file(file)
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


@pytest.mark.real_model
def test_a_mix_is_what_the_real_file_has():
    """Gemma 3 270M as Q4_K_M: llama.cpp chose the type of each of its tensors."""
    geometry = named_geometry("gemma-3-4b").resized(
        n_layer=18, n_embd=640, n_head=4, n_head_kv=1, n_ff=2048
    )
    with quant.open(real_file(GEMMA3_270M)) as model:
        found = {name: model.tensor_info(name).type_name for name in model}
    planned = {t.spec.name: t.block.name for t in plan_tensors(geometry, "Q4_K_M")}
    assert planned == found
