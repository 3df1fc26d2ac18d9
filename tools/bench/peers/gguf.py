"""The gguf package's dequantisation, in NumPy: one thread, and a fresh output each time."""

from __future__ import annotations

from . import Variant


def describe():
    from importlib import metadata

    import gguf.quants  # noqa: F401

    return dict(gguf=metadata.version("gguf"))


def set_threads(n_threads):
    pass


def prepare(case, data):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if case["kind"] != "dequantize":
        return {}
    qtype = GGMLQuantizationType[case["sizes"]["qtype"]]
    result = []

    def call(n_threads):
        result[:] = [dequantize(data["blocks"], qtype)]

    return {"gguf": Variant(call, lambda: result[0])}
