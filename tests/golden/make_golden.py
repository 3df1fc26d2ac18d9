"""Make ggml_blocks.npz, the blocks that quant.quantize is held against: ggml's own.

Made with the libggml-base of llama-cpp-py-sync 0.11739 (a part of the extra [test]) by

    python tests/golden/make_golden.py

Tests read the file only. Types that stood in it before were made with llama-cpp-python 0.3.36 (ggml 0.25.3), whose bytes
are the same.

README of ggml_blocks.npz (arrays, all small):

input/DATA
    float32 (rows, columns) weights, from `numpy.random.RandomState(SEED)`, whose streams are
    frozen; stored all the same, since another libm may round a logarithm otherwise.
blocks/DATA/TYPE
    uint8 (rows, row bytes): what ggml_quantize_chunk wrote for them.
importance
    float32 (columns,): an importance matrix.
weighed/DATA/TYPE
    uint8: what ggml_quantize_chunk wrote with it, of some of the data, for types that take notice of it.
"""

import ctypes
import pathlib

import numpy as np

from quant.formats import block_format
from tools.bench.model_peers.libraries import LLAMA_CPP, libraries

SEED = 20240611
SHAPE = (4, 512)
TYPES = (
    "Q8_0",
    "Q4_0",
    "IQ4_NL",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q6_K",
    "IQ4_XS",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "MXFP4",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ1_S",
    "IQ1_M",
    "TQ1_0",
    "TQ2_0",
    "NVFP4",
    "Q1_0",
    "Q2_0",
)
# ggml asserts that there is an importance matrix: here one of which all columns count alike.
DEMAND_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
TAKE_NO_NOTICE = ("Q8_0", "MXFP4", "TQ1_0", "TQ2_0", "NVFP4", "Q1_0", "Q2_0")
WEIGHED = ("normal", "outliers", "all_sizes")
FILE = pathlib.Path(__file__).with_name("ggml_blocks.npz")


def make_inputs():
    """Weights of several kinds by name."""
    random = np.random.RandomState(SEED)
    normal = random.standard_normal(SHAPE) * 0.02
    outliers = random.standard_normal(SHAPE) * 0.02
    outliers[random.random_sample(SHAPE) < 0.005] *= 200
    sparse = np.where(random.random_sample(SHAPE) < 0.03, random.standard_normal(SHAPE), 0)
    # Every run of 16 weights has a size of its own, from far below what a half can hold.
    sizes = np.repeat(10 ** random.uniform(-44, 4, SHAPE[0] * SHAPE[1] // 16), 16).reshape(SHAPE)
    inputs = {
        "normal": normal,
        "student_t": random.standard_t(2, SHAPE) * 0.02,
        "outliers": outliers,
        "sparse": sparse,
        "positive": random.random_sample(SHAPE) + 0.5,
        "negative": -random.random_sample(SHAPE),
        "integers": random.randint(-6, 7, SHAPE),
        "all_sizes": random.standard_normal(SHAPE) * sizes,
        "denormal": random.standard_normal(SHAPE) * 1e-40,
        "large": random.standard_normal(SHAPE) * 1e5,
        "constant": np.repeat(random.standard_normal(SHAPE[0] * 8), SHAPE[1] // 8).reshape(SHAPE),
        "zeros": np.where(np.arange(SHAPE[1]) % 3 == 0, -0.0, 0.0) * np.ones(SHAPE),
    }
    return {name: weights.astype(np.float32) for name, weights in inputs.items()}


def load_ggml():
    """ggml's base library, from inside the llama_cpp_py_sync package."""
    *before, llama = libraries(LLAMA_CPP)
    for path in before:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(llama.with_name("libggml-base.so.0")))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library


def ggml_quantize(library, weights, type_name, importance=None):
    """What ggml_quantize_chunk writes for float32 (rows, columns)."""
    rows, columns = weights.shape
    block = block_format(type_name)
    if importance is None and type_name in DEMAND_IMPORTANCE:
        importance = np.ones(columns, np.float32)
    blocks = np.zeros((rows, block.row_bytes(columns)), np.uint8)
    n_bytes = library.ggml_quantize_chunk(
        int(block.qtype), weights.ctypes.data, blocks.ctypes.data, 0, rows, columns,
        None if importance is None else importance.ctypes.data,
    )  # fmt: skip
    assert n_bytes == blocks.nbytes
    return blocks


def main():
    library = load_ggml()
    importance = np.random.RandomState(SEED + 1).random_sample(SHAPE[1]) ** 4 * 10 + 1e-3
    importance = importance.astype(np.float32)
    arrays = {"importance": importance}
    for name, weights in make_inputs().items():
        arrays[f"input/{name}"] = weights
        for type_name in TYPES:
            arrays[f"blocks/{name}/{type_name}"] = ggml_quantize(library, weights, type_name)
            if name in WEIGHED and type_name not in TAKE_NO_NOTICE:
                weighed = ggml_quantize(library, weights, type_name, importance)
                arrays[f"weighed/{name}/{type_name}"] = weighed
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
