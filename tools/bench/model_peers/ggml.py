"""llama.cpp out of a wheel of it: flash attention, weights repacked where it does that."""

from __future__ import annotations

import ctypes
import importlib.metadata
from typing import Any

from . import Job
from .libraries import LLAMA_CPP, WHEELS, libraries
from .llama_api import LlamaEngine

FLASH_ON = 1


def describe() -> dict[str, str]:
    """The wheel's version."""
    libraries(LLAMA_CPP)
    package, _ = WHEELS[LLAMA_CPP]
    return {"llama.cpp": f"{package} {importlib.metadata.version(package)}"}


class Engine(LlamaEngine):
    """See the package."""

    def __init__(self) -> None:
        # The header, as it was generated for the wheel's own library.
        from llama_cpp_py_sync._cffi_bindings import ffi

        *before, library = libraries(LLAMA_CPP)
        for path in before:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self.lib = ffi.dlopen(str(library))
        self.lib.llama_backend_init()

    def load_model(self, job: Job) -> Any:
        params = self.lib.llama_model_default_params()
        return self.lib.llama_model_load_from_file(job.path.encode(), params)

    def set_attention(self, params: Any, job: Job) -> None:
        params.flash_attn_type = FLASH_ON

    def remove(self, n: int) -> bool:
        return self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self._context), 0, n, -1)

    def free_model(self, model: Any) -> None:
        self.lib.llama_model_free(model)
