"""GGUF weights on top of `lowlevel`: model files, block formats, dequantisation, products.

The modules imported here are light: what compiles kernels (quant.cpu) or needs a GPU (quant.gpu)
is imported when a call first needs it.
"""

from lowlevel.version import __version__

from .dequantize import dequantize
from .embed import embed
from .formats import FORMATS, BlockFormat, block_format
from .gguf.imatrix import Imatrix
from .gguf.model_file import ModelFile, ModelFileError, open
from .kv import KV_TYPES  # plans know quantised K and V by name from here on
from .latent import LatentKV
from .matmul import matmul, matmul_plan, matmul_scratch_bytes
from .models.model import load
from .quantize import quantize
from .tensor import QuantTensor

__all__ = [
    "FORMATS",
    "KV_TYPES",
    "BlockFormat",
    "Imatrix",
    "LatentKV",
    "ModelFile",
    "ModelFileError",
    "QuantTensor",
    "__version__",
    "block_format",
    "dequantize",
    "embed",
    "load",
    "matmul",
    "matmul_plan",
    "matmul_scratch_bytes",
    "open",
    "quantize",
]
