"""The sizes of attention out of a file's metadata."""

import gguf_bytes as gb
import numpy as np
import pytest

import quant
from quant.models.geometry import AttentionGeometry

LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 512,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
}
MLA = {
    "general.architecture": "deepseek2",
    "deepseek2.block_count": 61,
    "deepseek2.context_length": 163840,
    "deepseek2.embedding_length": 7168,
    "deepseek2.attention.head_count": 128,
    "deepseek2.attention.kv_lora_rank": 512,
    "deepseek2.rope.dimension_count": 64,
}
OLD_MLA = {  # as in the log of the PR
    **MLA,
    "deepseek2.attention.head_count_kv": 128,
    "deepseek2.attention.key_length": 192,
    "deepseek2.attention.value_length": 128,
}
NEW_MLA = {
    **MLA,
    "deepseek2.attention.head_count_kv": 1,
    "deepseek2.attention.key_length": 576,
    "deepseek2.attention.value_length": 512,
    "deepseek2.attention.key_length_mla": 192,
    "deepseek2.attention.value_length_mla": 128,
}


def test_attention_geometry():
    llama = AttentionGeometry.from_metadata(LLAMA)
    assert llama == AttentionGeometry("llama", 2, 512, 4096, 8, 2, 64, 64, 64)
    assert not llama.is_mla and llama.d_k_latent is None
    without_kv = {key: value for key, value in LLAMA.items() if not key.endswith("count_kv")}
    assert AttentionGeometry.from_metadata(without_kv).n_head_kv == 8
    for metadata in (OLD_MLA, NEW_MLA):
        mla = AttentionGeometry.from_metadata(metadata)
        assert mla == AttentionGeometry("deepseek2", 61, 7168, 163840, 128, 128, 192, 128, 64, 512)
        assert mla.is_mla and mla.d_k_latent == 576


def test_attention_geometry_per_layer():
    key = "llama.attention.head_count_kv"
    geometry = AttentionGeometry.from_metadata({**LLAMA, key: np.array([2, 4, 9], np.int32)})
    assert geometry.n_head_kv == (2, 4)
    assert AttentionGeometry.from_metadata({**LLAMA, key: np.array([4, 4])}).n_head_kv == 4
    for bad in (np.array([4]), np.array([4, -1]), np.array([0.5, 1]), "four", -1, True):
        with pytest.raises(ValueError, match="head_count_kv"):
            AttentionGeometry.from_metadata({**LLAMA, key: bad})


@pytest.mark.parametrize("key", [key for key in LLAMA if not key.endswith("count_kv")])
def test_missing_keys_of_the_geometry(tmp_path, key):
    rest = {k: v for k, v in LLAMA.items() if k != key}
    entries = [gb.entry(k, gb.STRING if isinstance(v, str) else gb.U32, v) for k, v in rest.items()]
    path = tmp_path / "model.gguf"
    path.write_bytes(gb.header(entries, []))
    with pytest.raises(quant.ModelFileError, match=f"{path}: metadata '{key}'"):
        _ = quant.open(path).attention
    with pytest.raises(ValueError, match=key):
        AttentionGeometry.from_metadata({**LLAMA, key: -1})
