"""ggml's C libraries through ctypes: as llama-cpp-python brings them, built here, or a wheel, llama-cpp-py-sync."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import subprocess

from ..model_peers.libraries import LLAMA_CPP, libraries

pointer, size_t, int64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
F32, F16 = 0, 1
# Places in struct ggml_tensor (ggml.h); `has_known_layout` checks them against the library.
_NAME_OFFSET, _DATA_OFFSET, _EXTRA_OFFSET = 256, 248, 320
_TENSOR_BYTES, _OBJECT_BYTES = 336, 32

_SIGNATURES = {
    "ggml_init": (pointer, [ctypes.c_void_p]),  # completed below: takes a struct
    "ggml_version": (ctypes.c_char_p, []),
    "ggml_commit": (ctypes.c_char_p, []),
    "ggml_tensor_overhead": (size_t, []),
    "ggml_graph_overhead": (size_t, []),
    "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, int64, int64]),
    "ggml_new_tensor_3d": (pointer, [pointer, ctypes.c_int, int64, int64, int64]),
    "ggml_view_3d": (pointer, [pointer, pointer, int64, int64, int64, size_t, size_t, size_t]),
    "ggml_mul_mat": (pointer, [pointer] * 3),
    "ggml_flash_attn_ext": (pointer, [pointer] * 5 + [ctypes.c_float] * 3),
    "ggml_new_graph": (pointer, [pointer]),
    "ggml_build_forward_expand": (None, [pointer, pointer]),
    "ggml_get_data": (pointer, [pointer]),
    "ggml_nbytes": (size_t, [pointer]),
    "ggml_set_name": (pointer, [pointer, ctypes.c_char_p]),
    "ggml_free": (None, [pointer]),
    "ggml_get_type_traits": (pointer, [ctypes.c_int]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer, pointer]),
    "ggml_backend_buffer_free": (None, [pointer]),
    "ggml_backend_tensor_set": (None, [pointer, pointer, size_t, size_t]),
    "ggml_backend_buft_name": (ctypes.c_char_p, [pointer]),
    "ggml_backend_cpu_buffer_type": (pointer, []),
    "ggml_backend_reg_dev_get": (pointer, [pointer, size_t]),
    "ggml_backend_reg_get_proc_address": (pointer, [pointer, ctypes.c_char_p]),
    "ggml_backend_cpu_reg": (pointer, []),
    "ggml_cpu_init": (None, []),
    "ggml_graph_compute": (ctypes.c_int, [pointer, pointer]),
    "ggml_cpu_fp16_to_fp32": (None, [pointer, pointer, int64]),
    "ggml_cpu_bf16_to_fp32": (None, [pointer, pointer, int64]),
}


class _InitParams(ctypes.Structure):
    _fields_ = [("bytes", size_t), ("memory", pointer), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):
    """struct ggml_cplan; what follows the number of threads is left zero."""

    _fields_ = [
        ("work_size", size_t),
        ("work_data", pointer),
        ("n_threads", ctypes.c_int),
        ("rest", ctypes.c_uint8 * 128),
    ]


class TypeTraits(ctypes.Structure):
    """The beginning of struct ggml_type_traits."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block_weights", int64),
        ("block_weights_interleaved", int64),
        ("block_bytes", size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, pointer, pointer, int64)),
    ]


class _Library:
    """ggml's functions by name, with their signatures."""

    def __init__(self, paths):
        self._parts = [ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for path in paths]
        for name, (result, arguments) in _SIGNATURES.items():
            self._declare(name, result, arguments)
        self._declare("ggml_init", pointer, [_InitParams])
        self._declare("ggml_graph_plan", Plan, [pointer, ctypes.c_int, pointer])
        self.ggml_cpu_init()

    def _declare(self, name, result, arguments):
        function = next((getattr(p, name) for p in self._parts if hasattr(p, name)), None)
        if function is not None:  # older builds lack some: their users say so
            function.restype, function.argtypes = result, arguments
        setattr(self, name, function)

    def context(self, n_bytes, no_alloc=False):
        """A new context: memory for tensors, or (no_alloc) for their headers only."""
        return self.ggml_init(_InitParams(n_bytes, None, no_alloc))

    def put(self, tensor, array):
        """Copy an array's bytes into a tensor in plain memory."""
        if self.ggml_nbytes(tensor) != array.nbytes:
            raise ValueError(f"tensor of {self.ggml_nbytes(tensor)} bytes, array {array.nbytes}")
        ctypes.memmove(self.ggml_get_data(tensor), array.ctypes.data, array.nbytes)

    def traits(self, qtype):
        return TypeTraits.from_address(self.ggml_get_type_traits(int(qtype)))

    @functools.cached_property
    def features(self):
        """What the CPU library was built with and found: {"AVX512": "1", ...}."""

        class Feature(ctypes.Structure):
            _fields_ = [("name", ctypes.c_char_p), ("value", ctypes.c_char_p)]

        address = self._proc_address(b"ggml_backend_get_features")
        if not address:
            return {}
        features = ctypes.CFUNCTYPE(ctypes.POINTER(Feature), pointer)(address)(self._reg)
        found, i = {}, 0
        while features[i].name:
            found[features[i].name.decode()] = features[i].value.decode()
            i += 1
        return found

    @functools.cached_property
    def repack_buffer_type(self):
        """The buffer type that rearranges weights for this CPU (CPU_REPACK), or None."""
        address = self._proc_address(b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        device = self.ggml_backend_reg_dev_get(self._reg, 0)
        types = ctypes.CFUNCTYPE(ctypes.POINTER(pointer), pointer)(address)(device)
        i = 0
        while types and types[i]:
            if self.ggml_backend_buft_name(types[i]) == b"CPU_REPACK":
                return types[i]
            i += 1
        return None

    def extra(self, tensor):
        """The tensor's `extra` pointer: None where a buffer type has no special form for it."""
        return pointer.from_address(tensor + _EXTRA_OFFSET).value

    @functools.cached_property
    def has_known_layout(self):
        """Whether struct ggml_tensor is laid out as this module thinks."""
        if self.ggml_tensor_overhead() != _TENSOR_BYTES + _OBJECT_BYTES:
            return False
        context = self.context(1 << 16)
        tensor = self.ggml_new_tensor_2d(context, F32, 32, 2)
        self.ggml_set_name(tensor, b"kqcap layout")
        name = ctypes.string_at(tensor + _NAME_OFFSET)
        data = pointer.from_address(tensor + _DATA_OFFSET).value
        known = name == b"kqcap layout" and data == self.ggml_get_data(tensor)
        self.ggml_free(context)
        return known

    @functools.cached_property
    def _reg(self):
        return self.ggml_backend_cpu_reg()

    def _proc_address(self, name):
        return self.ggml_backend_reg_get_proc_address(self._reg, name)


@functools.cache
def load() -> _Library:
    """The library; ImportError if neither package is there, or its ggml does not load."""
    paths = _built_here() or _of_the_wheel()
    try:
        return _Library(paths)
    except OSError as error:
        raise ImportError(
            f"ggml's libraries {list(map(str, paths))} do not load: {error}"
        ) from error


def _built_here():
    """Of llama-cpp-python, which its user's compiler made for this CPU."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        return None
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "lib"
    return [folder / f"lib{name}.so" for name in ("ggml-base", "ggml-cpu")]


def _of_the_wheel():
    try:
        return libraries(LLAMA_CPP)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ImportError(f"ggml's libraries do not load here: {error}") from error
