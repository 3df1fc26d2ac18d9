"""kqcap itself, in a process like the others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import quant
from lowlevel.version import __version__

from ...options import MIB
from . import Job


def describe() -> dict[str, str]:
    """Our version."""
    return dict(kqcap=__version__)


class Engine:
    """See the package."""

    def load(self, job: Job) -> dict[str, Any]:
        self._net = quant.load(
            job.path,
            n_ctx=job.n_ctx,
            n_ubatch=job.n_ubatch,
            amb=job.amb_mib * MIB or None,
            kv_type=job.kv_type,
            mla=job.mla,
            n_threads=job.n_threads,
        )
        self._logits = np.empty(self._net.config.n_vocab, np.float32)
        return dict(compute_bytes=self._net.memory.compute)

    def append(self, tokens: np.ndarray, progress: Callable[[int, int], None]) -> None:
        self._net.prefill(tokens, out=self._logits, progress=progress)

    def truncate(self, n: int) -> bool:
        if n > self._net.n_kv:
            return False
        try:
            self._net.truncate(n)
        except ValueError:  # rows that a window had let go
            return False
        return True

    def close(self) -> None:
        self._net.close()
