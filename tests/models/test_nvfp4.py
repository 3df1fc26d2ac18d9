"""Models with NVFP4 weights as llama.cpp writes them: a factor beside each, the tensor .scale."""

import gguf
import numpy as np
import pytest
from peers import LLAMA_CPP, need, peer_logits
from small_files import small_file

import quant
from quant import ModelFileError

SCALED = "blk.0.attn_q blk.0.attn_output blk.1.ffn_gate blk.1.ffn_up blk.1.ffn_down".split()
TOKENS = np.arange(5, 45).tolist()


def rewritten(path, source, change, more):
    """A copy of a model file whose tensors `change` may replace: arrays of float32, or None for the same bytes."""
    with quant.open(source) as file:
        writer = gguf.GGUFWriter(path, file.metadata["general.architecture"])
        for key, field in gguf.GGUFReader(source).fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                kind = field.types[0]
                sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(key, field.contents(), kind, sub_type)
        for name in file:
            info, values = file.tensor_info(name), change(name, file)
            if values is None:
                data = file.tensor_bytes(name).reshape(*info.shape[:-1], -1)
                writer.add_tensor(name, data, raw_dtype=info.qtype)
            else:
                writer.add_tensor(name, values)
        for name, values in more.items():
            writer.add_tensor(name, np.asarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def logits_of(path, **options):
    with quant.load(path, n_ctx=64, n_threads=2, exact=True, kv_type="f32", **options) as net:
        return net.prefill(TOKENS, all_logits=True)


def test_factors_are_taken_into_products(model_folder, tmp_path):
    """As the same weights times their factors, in float32; .input_scale changes nothing."""
    source = small_file(model_folder, "llama", "NVFP4")
    factors = {name: 0.5 + 0.25 * i for i, name in enumerate(SCALED)}
    more = {f"{name}.scale": [factor] for name, factor in factors.items()}
    more["blk.0.attn_q.input_scale"] = [3.0]
    scaled = rewritten(tmp_path / "scaled.gguf", source, lambda name, file: None, more)

    def multiplied(name, file):
        factor = factors.get(name.removesuffix(".weight"))
        return None if factor is None else quant.dequantize(file[name]) * np.float32(factor)

    plain = rewritten(tmp_path / "plain.gguf", source, multiplied, {})
    found, expected = logits_of(scaled), logits_of(plain)
    scale = np.sqrt(np.mean(expected**2))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 1e-5 * scale
    without = logits_of(source)
    assert np.sqrt(np.mean((found - without) ** 2)) > 1e-2 * scale
    need(LLAMA_CPP)
    theirs = peer_logits(LLAMA_CPP, scaled, TOKENS)
    assert np.sqrt(np.mean((theirs - expected) ** 2)) < 3e-2 * scale


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("output", [2.0], "tensor 'output.scale' may change the pass"),
        ("blk.0.attn_q", [1.0, 2.0], r"tensor 'blk.0.attn_q.scale' is F32 \(2,\); expected one"),
        ("blk.0.attn_q", [np.inf], "expected one finite F32"),
    ],
)
def test_factors_that_are_not_understood_are_named(model_folder, tmp_path, name, values, message):
    source = small_file(model_folder, "llama", "NVFP4")
    path = rewritten(
        tmp_path / "odd.gguf", source, lambda name, file: None, {f"{name}.scale": values}
    )
    with pytest.raises((ModelFileError, ValueError), match=message):
        quant.load(path, n_ctx=64)
