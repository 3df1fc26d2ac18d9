"""The CUDA kernels of this floor, see lowlevel/cuda/instances.py.

A block format NAME has a file name.cu with a struct NAME, which the kernel template of
dequantize.cuh takes; a new row in formats.py with such a file is all a new format needs.
"""

from lowlevel.cuda.instances import Kernel

from ..formats import FORMATS

PACKAGE = "quant.cuda"
# dtype name -> the struct of float_types.cuh, its Bits, how many make 16 bytes
OUTPUTS = {
    "float32": ("Float32", "f4", 4),
    "float16": ("Float16", "u2", 8),
    "bfloat16": ("Bfloat16", "u2", 8),
}
_FLOAT_TYPES = {"F32": "Float32", "F16": "Float16", "BF16": "Bfloat16"}


def _dequantize(block, dtype, aligned):
    struct, bits, _ = OUTPUTS[dtype]
    flag = "true" if aligned else "false"
    if block.is_float:
        file, name = "floats.cu", f"convert<{_FLOAT_TYPES[block.name]}, {struct}, {flag}>"
        counts = ("i8", "i8")
    else:
        file, name = f"{block.name.lower()}.cu", f"dequantize<{block.name}, {struct}, {flag}>"
        counts = ("u4", "u4")
    return Kernel(PACKAGE, file, name, ("const u1*", "i8", f"{bits}*", "i8", *counts), 256)


# (format's name, dtype's name, aligned?) -> Kernel
DEQUANTIZE = {
    (block.name, dtype, aligned): _dequantize(block, dtype, aligned)
    for block in FORMATS.values()
    for dtype in OUTPUTS
    for aligned in (True, False)
}
KERNELS = tuple(DEQUANTIZE.values())
