"""ggml's CPU code, driven through C: row functions, and graphs as llama.cpp computes them.

ggml           plain buffers: ``to_float`` rows, mul_mat, flash_attn_ext with f16 K and V
ggml repacked  mul_mat with the weight in a CPU_REPACK buffer, which llama.cpp uses by default
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import itertools
import weakref
from typing import Any

import numpy as np

import quant

from . import Variant, inputs
from .ggml_library import F16, F32, load

MEMORY_MARGIN = 64 << 20  # for headers, graphs and rounding in a context


def describe() -> dict[str, Any]:
    library: Any = load()  # its functions are attributes made of a table
    on = [name for name, value in library.features.items() if value == "1"]
    return dict(
        ggml=(library.ggml_version() or b"?").decode() if library.ggml_version else "?",
        features=" ".join(on),
    )


def set_threads(n_threads: int) -> None:
    pass


def prepare(case: dict[str, Any], data: dict[str, np.ndarray]) -> dict[str, Variant | str]:
    return _PREPARE[case["kind"]](case["sizes"], data)


def _type_number(qtype):
    return int(quant.block_format(qtype).qtype)


# ---------------------------------------------------------------- dequantisation


def _dequantize(sizes, data):
    """Rows through to_float, in as many parts as threads."""
    library = load()
    blocks, columns = data["blocks"], sizes["columns"]
    out = inputs.aligned((len(blocks), columns))
    fast = {"F16": library.ggml_cpu_fp16_to_fp32, "BF16": library.ggml_cpu_bf16_to_fp32}
    to_float = fast.get(sizes["qtype"]) or library.traits(_type_number(sizes["qtype"])).to_float
    pool = concurrent.futures.ThreadPoolExecutor(8)  # ctypes lets go of the GIL

    def part(start, stop):
        # row by row, as ggml calls it: its functions take an int64, but some count in int
        source, target = blocks[start:stop].ctypes.data, out[start:stop].ctypes.data
        to_float(source, target, (stop - start) * columns)

    def call(n_threads):
        bounds = np.linspace(0, len(blocks), n_threads + 1).astype(int)
        others = [pool.submit(part, a, b) for a, b in itertools.pairwise(bounds[1:])]
        part(bounds[0], bounds[1])
        for other in others:
            other.result()

    return {"ggml": Variant(call, lambda: out)}


# ---------------------------------------------------------------- graphs


class _Graph:
    """A graph of one operation whose inputs are in place, with a plan for each thread count."""

    def __init__(self, library, n_bytes):
        self.library = library
        self.context = library.context(n_bytes + MEMORY_MARGIN)
        if not self.context:
            raise MemoryError(f"ggml: no context of {n_bytes + MEMORY_MARGIN} bytes")
        weakref.finalize(self, library.ggml_free, self.context)
        self._plans = {}

    def tensor(self, kind, *sizes):
        make = getattr(self.library, f"ggml_new_tensor_{len(sizes)}d")
        return make(self.context, kind, *sizes)

    def filled(self, array):
        """A tensor with an array's values; sizes fastest first, as ggml has them."""
        kind = {"float32": F32, "float16": F16}[array.dtype.name]
        tensor = self.tensor(kind, *reversed(array.shape))
        self.library.put(tensor, np.ascontiguousarray(array))
        return tensor

    def build(self, result, shape):
        self.result, self.shape = result, shape
        self.graph = self.library.ggml_new_graph(self.context)
        self.library.ggml_build_forward_expand(self.graph, result)

    def run(self, n_threads):
        if n_threads not in self._plans:
            plan = self.library.ggml_graph_plan(self.graph, n_threads, None)
            memory = np.zeros(plan.work_size + 64, np.uint8)
            plan.work_data = memory.ctypes.data
            self._plans[n_threads] = (plan, memory)
        plan, _ = self._plans[n_threads]
        if self.library.ggml_graph_compute(self.graph, ctypes.byref(plan)):
            raise RuntimeError("ggml_graph_compute failed")

    def output(self):
        data = ctypes.cast(self.library.ggml_get_data(self.result), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, self.shape)

    def scratch_bytes(self):
        return max(plan.work_size for plan, _ in self._plans.values())


def _product(sizes, data):
    library = load()
    variants = {"ggml": _multiply(library, sizes, data, library.ggml_backend_cpu_buffer_type())}
    reason = _no_repacking(library, sizes)
    variants["ggml repacked"] = reason or _multiply(
        library, sizes, data, library.repack_buffer_type
    )
    return variants


def _no_repacking(library, sizes):
    """Why there is no repacked form; "" if there is one."""
    if not library.repack_buffer_type:
        return "this build has no CPU_REPACK buffers"
    if not library.has_known_layout:
        return "this build's ggml_tensor is laid out in an unknown way"
    weights = _Weights(library, sizes, 1, library.repack_buffer_type)
    if not library.extra(weights.tensors[0]):
        return f"this build has no repacked form of {sizes['qtype']} for this CPU"
    return ""


class _Weights:
    """Copies of a weight in a buffer of some type, not filled yet."""

    def __init__(self, library, sizes, count, buffer_type):
        self.context = library.context(count * library.ggml_tensor_overhead() + 4096, no_alloc=True)
        weakref.finalize(self, library.ggml_free, self.context)
        kind = _type_number(sizes["qtype"])
        self.tensors = [
            library.ggml_new_tensor_2d(self.context, kind, sizes["columns"], sizes["rows"])
            for _ in range(count)
        ]
        buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(self.context, buffer_type)
        if not buffer:
            raise MemoryError("ggml: no buffer for the weights")
        weakref.finalize(self, library.ggml_backend_buffer_free, buffer)


def _multiply(library, sizes, data, buffer_type):
    """mul_mat, each copy of the weight in turn."""
    blocks, x = data["blocks"], data["x"]
    weights = _Weights(library, sizes, sizes["copies"], buffer_type)
    shape = (sizes["n"], sizes["rows"])
    graphs = []
    for weight in weights.tensors:
        library.ggml_backend_tensor_set(weight, blocks.ctypes.data, 0, blocks.nbytes)
        graph = _Graph(library, x.nbytes + 4 * shape[0] * shape[1])
        graph.build(library.ggml_mul_mat(graph.context, weight, graph.filled(x)), shape)
        graph.weights = weights  # lives as long as what reads it
        graphs.append(graph)
    turn = itertools.cycle(graphs)
    return Variant(lambda n_threads: next(turn).run(n_threads), graphs[0].output)


# ---------------------------------------------------------------- attention


def _attention(sizes, data):
    library = load()
    half = {name: data[name].astype(np.float16) for name in data if name != "q"}
    n_head, n_tokens, n_kv = sizes["n_head"], sizes["n_tokens"], sizes["n_kv"]
    shape = (n_tokens, n_head, sizes["d_v"])
    n_bytes = data["q"].nbytes + sum(x.nbytes for x in half.values()) + 4 * int(np.prod(shape))
    graph = _Graph(library, n_bytes + 2 * n_tokens * n_kv)
    q, k = graph.filled(data["q"]), graph.filled(half["k"])
    if sizes["v_in_k"]:
        key_bytes = half["k"].strides[1]
        v = library.ggml_view_3d(
            graph.context, k, sizes["d_v"], n_kv, sizes["n_head_kv"],
            key_bytes, half["k"].strides[0], 0,
        )  # fmt: skip
    else:
        v = graph.filled(half["v"])
    mask = None
    if n_tokens > 1:
        hidden = np.arange(n_kv)[None] > np.arange(n_kv - n_tokens, n_kv)[:, None]
        mask = graph.filled(np.where(hidden, np.float16(-np.inf), np.float16(0)))
    scale = sizes["d_k"] ** -0.5
    graph.build(library.ggml_flash_attn_ext(graph.context, q, k, v, mask, scale, 0.0, 0.0), shape)
    return {
        "ggml": Variant(
            graph.run,
            lambda: graph.output().transpose(1, 0, 2),
            lambda: dict(scratch_bytes=graph.scratch_bytes()),
        )
    }


_PREPARE = {
    "dequantize": _dequantize,
    "matvec": _product,
    "gemm": _product,
    "attention": _attention,
}
