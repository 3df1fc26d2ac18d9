"""What to do about CUDA that the simulator has not, by the names in a compiler's messages."""

from __future__ import annotations

import re

_HALF = "include <cuda_fp16.h>"
_BF16 = "include <cuda_bf16.h>"
_STANDARD = (
    "libcu++ is not here: under #ifdef CUDASIM take the host's standard library (<type_traits>, "
    "<limits>, <array>, ...), and atomics as functions (atomicAdd)"
)
_ARRIVAL = (
    "barriers of <cuda/barrier> and their pipelines are not here: take __syncthreads, the named "
    "barriers and mbarriers of lowlevel/gpu/include, or cuda_pipeline.h"
)
_TEXTURES = "textures and surfaces are not simulated: read through a pointer under #ifdef CUDASIM"
_RANDOM = "cuRAND is not here: make the random numbers on the host, or with a generator of your own"
_LIBRARY = (
    "a library of kernels, which the simulator has not: write it out under #ifdef CUDASIM, or "
    "test the kernel without it"
)
_CLUSTERS = "clusters and distributed shared memory are not simulated"
_HOST = (
    "calls of the host's runtime API are not here: launch from Python, and put host code behind "
    "#ifndef CUDASIM; kernels that launch kernels are not simulated"
)
_SMALL = "8-bit and smaller floats are not here: decode their bytes with integers"
_DPX = "DPX instructions are not here: write them with min and max, which compile to the same"
_SIGNED_AVERAGE = "signed averages of packed integers are not here: average the parts one by one"
_MAPS = (
    "tensor maps and their copies are emulated by headers of lowlevel/gpu/include, not by this name"
)

# (pattern of a whole name or of a header, what to do); the first that fits counts.
_ADVICE = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"(__)?(half2?|__float2half\w*|__half2float|half_raw|h(exp|log|sqrt|sin|cos)\w*)", _HALF),
        (r"(__)?\w*(hadd2|hmul2|hfma2?|half2?float2|float22half2_rn|floats2half2_rn|hmul|hsub)", _HALF),
        (r"(__)?(nv_bfloat16\w*|\w*bfloat16\w*)", _BF16),
        (r"cuda/(barrier|pipeline)|cuda_awbarrier\w*(\.h)?|cooperative_groups/memcpy_async\.h", _ARRIVAL),
        (r"memcpy_async|__pipeline_arrive_on", _ARRIVAL),
        (r"cuda/\S+|cuda::\S*", _STANDARD),
        (r"(tex|surf)(1D|2D|3D|Cubemap)\w*|cuda(Texture|Surface)Object_t|texture\w*(\.h)?|surface\w*(\.h)?", _TEXTURES),
        (r"curand\w*(\.h)?", _RANDOM),
        (r"(cub|thrust|cutlass|cute|cccl|nv)/\S+|cub|thrust|cutlass", _LIBRARY),
        (r"\w*cluster\w*", _CLUSTERS),
        (r"cuda[A-Z]\w*", _HOST),
        (r"cuda_fp[468]\.h|__nv_fp[468]\w*", _SMALL),
        (r"__vi\w+", _DPX),
        (r"__vavgs[24]", _SIGNED_AVERAGE),
        (r"CUtensorMap|cp_async_bulk\w*|cuda\.h", _MAPS),
    )
)  # fmt: skip
_ERROR_LINE = re.compile(r"^.*\berror:.*$", re.MULTILINE)
_QUOTED = re.compile(r"[‘'\"]([\w:./]+)[’'\"]")
_MISSING_HEADER = re.compile(r"error: '?([\w./+-]+?)'?(?:: No such file| file not found)")


def advice(messages: str) -> str:
    """Lines to add to a compiler's messages: what to do about names it does not know.

    Parameters
    ----------
    messages : str

    Returns
    -------
    str
        Empty where none of the names is CUDA's.
    """
    found: dict[str, str] = {}
    for line in _ERROR_LINE.findall(messages):
        for name in (*_MISSING_HEADER.findall(line), *_QUOTED.findall(line)):
            for pattern, text in _ADVICE:
                if pattern.fullmatch(name):
                    found.setdefault(text, name)
                    break
    return "".join(f"\n{name}: {text}" for text, name in found.items())
