"""Make ggml_blocks.npz, the blocks that quant.quantize is held against: ggml's own.

Made once, with llama-cpp-python 0.3.36 (its x86-64 wheel, libggml-base.so.0.25.3) by

    /work/dev/peers/bin/python tests/golden/make_golden.py

where that interpreter is any Python with ``pip install llama-cpp-python==0.3.36 gguf numpy``. Tests
need none of these but NumPy; they read the file only. (IQ4_XS came later, of the libggml-base in
llama_cpp_py_sync 0.11739, which writes the same bytes as that one for every other type.)

README of ggml_blocks.npz (arrays, all small):

input/DATA
    float32 (rows, columns) weights, from `numpy.random.RandomState(SEED)`, whose streams are
    frozen; stored all the same, since another libm may round a logarithm otherwise.
blocks/DATA/TYPE
    uint8 (rows, row bytes): what ggml_quantize_chunk wrote for them.
rmse/DATA/TYPE
    float64: root mean square of ggml's blocks, decoded by the gguf package, minus the weights.
"""

import ctypes
import pathlib

import gguf
import numpy as np

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
)
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
    """ggml's base library, from inside the llama_cpp package."""
    import llama_cpp

    folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(folder / "libggml-base.so"))
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


def ggml_quantize(library, weights, qtype):
    """What ggml_quantize_chunk writes for float32 (rows, columns), without an importance matrix."""
    rows, columns = weights.shape
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    blocks = np.zeros((rows, columns // block_weights * block_bytes), np.uint8)
    n_bytes = library.ggml_quantize_chunk(
        int(qtype), weights.ctypes.data, blocks.ctypes.data, 0, rows, columns, None
    )
    assert n_bytes == blocks.nbytes
    return blocks


def main():
    library = load_ggml()
    arrays = {}
    for name, weights in make_inputs().items():
        arrays[f"input/{name}"] = weights
        for type_name in TYPES:
            qtype = gguf.GGMLQuantizationType[type_name]
            blocks = ggml_quantize(library, weights, qtype)
            error = gguf.quants.dequantize(blocks, qtype).astype(np.float64) - weights
            arrays[f"blocks/{name}/{type_name}"] = blocks
            arrays[f"rmse/{name}/{type_name}"] = np.sqrt(np.mean(error**2))
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
