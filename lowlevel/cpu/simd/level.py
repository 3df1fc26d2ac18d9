"""What the CPU has that kernels are compiled for: see the package."""

from numba.core import codegen, config


def _cpu_features():
    """The feature flags Numba compiles for, as a set of names."""
    text = config.CPU_FEATURES
    if text is None:
        text = codegen.get_host_cpu_features()
    return {flag[1:] for flag in text.split(",") if flag.startswith("+")}


def _level(features):
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= features:
        return "avx512"
    if {"avx2", "fma", "f16c"} <= features:
        return "avx2"
    return "portable"


FEATURES = frozenset(_cpu_features())
LEVEL = _level(FEATURES)
# Dot products of bytes as one instruction: with AVX-512, or of half the size on CPUs that have that alone.
HAS_VNNI = {"avx512": "avx512vnni", "avx2": "avxvnni"}.get(LEVEL) in FEATURES
# Gathers that are faster than as many loads: Intel's cores since Sapphire Rapids and Alder Lake, which need no mitigation of
# data sampling by them. These flags came with them.
HAS_FAST_GATHER = {"avx512": "avx512fp16", "avx2": "avxvnni"}.get(LEVEL) in FEATURES
