"""The gguf package's dequantisation, in NumPy: one thread, and a fresh output each time."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import Variant


def describe() -> dict[str, Any]:
    from importlib import metadata

    import gguf.quants  # noqa: F401

    return dict(gguf=metadata.version("gguf"))


def set_threads(n_threads: int) -> None:
    pass


def prepare(case: dict[str, Any], data: dict[str, np.ndarray]) -> dict[str, Variant | str]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if case["kind"] != "dequantize":
        return {}
    qtype = GGMLQuantizationType[case["sizes"]["qtype"]]
    result: list[np.ndarray] = []

    def call(n_threads):
        result[:] = [dequantize(data["blocks"], qtype)]

    return {"gguf": Variant(call, lambda: result[0])}
