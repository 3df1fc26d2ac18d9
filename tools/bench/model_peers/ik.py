"""ik_llama.cpp out of its wheel: flash attention, fused experts, latents by the number of rows (-mla 3)."""

from __future__ import annotations

import ctypes
import importlib.metadata
from typing import Any

from . import Job
from .libraries import IK, WHEELS, libraries
from .llama_api import LlamaEngine

BEST_MLA = 3


def describe() -> dict[str, str]:
    """The wheel's version."""
    libraries(IK)
    package, _ = WHEELS[IK]
    return {"ik_llama.cpp": f"{package} {importlib.metadata.version(package)}"}


class Engine(LlamaEngine):
    """See the package."""

    def __init__(self) -> None:
        import ik_llama_cpp._ctypes_api as lib

        self.lib = lib
        self._remove = lib._lib.llama_kv_cache_seq_rm
        self._remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
        self._remove.restype = ctypes.c_bool
        self._synchronise = lib._lib.llama_synchronize
        self._synchronise.argtypes, self._synchronise.restype = [ctypes.c_void_p], None
        lib.llama_backend_init()

    def synchronise(self) -> None:
        self._synchronise(self._context)

    def load_model(self, job: Job) -> Any:
        params = self.lib.llama_model_default_params()
        params.mla = BEST_MLA
        return self.lib.llama_model_load_from_file(job.path.encode(), params)

    def set_attention(self, params: Any, job: Job) -> None:
        params.flash_attn = True
        params.mla_attn = BEST_MLA
        params.attn_max_batch = job.amb_mib

    def remove(self, n: int) -> bool:
        return self._remove(self._context, 0, n, -1)

    def free_model(self, model: Any) -> None:
        self.lib.llama_free_model(model)
