"""What llama.cpp and ik_llama.cpp have in common, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as QType

from . import Job

_COMPUTE = re.compile(r"(\S+)\s+compute buffer size\s*=\s*([\d.]+)\s*MiB")


class LlamaEngine:
    """A file in one of the two: subclasses know their library.

    Attributes
    ----------
    lib : module or cffi library
        The functions of llama.h.
    """

    lib: Any

    def load(self, job: Job) -> dict[str, Any]:
        lib, self._job = self.lib, job
        with said() as lines:
            self._model = self.load_model(job)
            if not self._model:
                raise ValueError("it does not load the file: " + last_words(lines()))
            params = lib.llama_context_default_params()
            params.n_ctx = job.n_ctx
            params.n_batch = params.n_ubatch = job.n_ubatch
            params.n_threads = params.n_threads_batch = job.n_threads
            params.type_k = params.type_v = int(QType[job.kv_type.upper()])
            self.set_attention(params, job)
            self._context = lib.llama_init_from_model(self._model, params)
            if not self._context:
                raise ValueError("it makes no context for the file: " + last_words(lines()))
            # a device's line comes again where a graph was reserved anew: the last counts
            sizes = dict(_COMPUTE.findall(lines()))
        self._batch = lib.llama_batch_init(job.n_ubatch, 0, 1)
        self._n_kv = 0
        n_bytes = int(sum(float(size) for size in sizes.values()) * 2**20)
        return dict(compute_bytes=n_bytes if sizes else None)

    def load_model(self, job: Job) -> Any:
        """The model of a file, null if it was refused."""
        raise NotImplementedError

    def set_attention(self, params: Any, job: Job) -> None:
        """The best form of attention."""
        raise NotImplementedError

    def remove(self, n: int) -> bool:
        """Take all tokens from number `n` on out of the cache."""
        raise NotImplementedError

    def synchronise(self) -> None:
        """Wait for the last tokens."""
        self.lib.llama_synchronize(self._context)

    def append(self, tokens: np.ndarray, progress: Callable[[int, int], None]) -> None:
        most = self._job.n_ubatch
        for start in range(0, len(tokens), most):
            some = tokens[start : start + most]
            self._decode(some.tolist(), is_last=start + most >= len(tokens))
            progress(start + len(some), len(tokens))
        self.synchronise()

    def _decode(self, tokens, is_last):
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = self._n_kv + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 0
        batch.logits[len(tokens) - 1] = int(is_last)
        if failed := self.lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode says {failed}")
        self._n_kv += len(tokens)

    def truncate(self, n: int) -> bool:
        if n > self._n_kv or not self.remove(n):
            return False
        self._n_kv = n
        return True

    def close(self) -> None:
        self.lib.llama_batch_free(self._batch)
        self.lib.llama_free(self._context)
        self.free_model(self._model)

    def free_model(self, model: Any) -> None:
        """Let the model go."""
        raise NotImplementedError


@contextlib.contextmanager
def said() -> Iterator[Any]:
    """What is written to standard error meanwhile, by a function that gives it so far; it is still written there."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def so_far():
            return os.pread(file.fileno(), 2**24, 0).decode(errors="replace")

        try:
            yield so_far
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.write(2, so_far().encode())


def last_words(text: str) -> str:
    """The last lines of a log that say something, in one."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    return "; ".join(lines[-3:])
