"""The processes that run kernels, and one launch on them.

Kernels never run inside the Python process. A kernel that crashes, overruns its memory or hangs
ends its runner; Python reads what the runner wrote down, raises it, and starts another runner for
the next launch.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import mmap
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.fork_lock import child_lock

from . import protocol
from .compiler import build_runner
from .errors import BY_FAULT, CudaSimError, KernelError
from .location import find_line, is_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .arguments import MemoryLayout


# Shared pages are kept between launches up to here: to clear fresh ones costs more than to copy.
_KEEP_BYTES = 256 << 20


class _Runner:
    """One process, and the socket that it takes commands from."""

    def __init__(self, index, files):
        ours, theirs = socket.socketpair()
        self.socket = ours
        with theirs:
            self.process = subprocess.Popen(
                [str(build_runner()), *(str(file) for file in files), str(index)],
                stdin=theirs,
                pass_fds=files,
                start_new_session=True,  # an interrupt from the keyboard is Python's to handle
            )

    def command(self, letter):
        with contextlib.suppress(OSError):  # a dead runner shows when its answer is awaited
            self.socket.sendall(letter)

    def answered(self):
        """Wait for the answer to a command; False: the runner has died."""
        try:
            return self.socket.recv(1) != b""
        except ConnectionError:
            return False

    def end(self):
        """Kill the process; its exit status."""
        self.socket.close()
        self.process.kill()
        return self.process.wait()


class RunnerPool:
    """All runners of this Python process, and the memory they share with it."""

    def __init__(self) -> None:
        child_lock(self)  # a child starts anew, see _exclusive
        self._process_id = None

    def _start(self):
        # After a fork the parent's runners are still the parent's: leave them alone.
        self._process_id = os.getpid()
        atexit.register(self._end, self._process_id)
        self._runners = {}
        self._control_file = os.memfd_create("cudasim-control")
        self._data_file = os.memfd_create("cudasim-data")
        size = ctypes.sizeof(protocol.Control)
        os.ftruncate(self._control_file, size)
        self._control = protocol.Control.from_buffer(mmap.mmap(self._control_file, size))
        self._data_bytes = 0
        self._data = None

    def _end(self, process_id):
        if process_id == os.getpid():
            while self._runners:
                self._runners.popitem()[1].end()

    @contextlib.contextmanager
    def _exclusive(self):
        with self._lock:
            if self._process_id != os.getpid():
                self._start()
            try:
                yield
            except BaseException:
                # Whatever the runners are doing, nobody waits for it any more.
                self._end(os.getpid())
                raise

    def _runner(self, index):
        runner = self._runners.get(index)
        if runner is None or runner.process.poll() is not None:
            if runner is not None:
                runner.end()
            runner = _Runner(index, (self._control_file, self._data_file))
            self._runners[index] = runner
        return runner

    def _memory(self, n_bytes):
        """The shared data memory, at least `n_bytes` long."""
        if n_bytes > self._data_bytes:
            self._data = None
            os.ftruncate(self._data_file, n_bytes)
            mapping = mmap.mmap(self._data_file, n_bytes)
            self._data = np.frombuffer(mapping, np.uint8)
            self._data_bytes = n_bytes
        return self._data

    def _release_memory(self):
        if self._data_bytes > _KEEP_BYTES:
            self._data = None
            self._data_bytes = 0
            os.ftruncate(self._data_file, 0)

    # ---- commands -------------------------------------------------------------------------------

    def describe(self, library: str | os.PathLike[str]) -> str:
        """The kernels of a compiled library, as text: see describe() in runtime/runner.cpp."""
        with self._exclusive():
            self._control.launch.library = os.fsencode(library)
            self._run(b"D", 1, "", library)
            return self._control.description.decode()

    def initial_values(
        self, library: str | os.PathLike[str], sizes: Sequence[int]
    ) -> list[np.ndarray]:
        """What the ``__device__`` variables of a library start with: an array of bytes each."""
        if not sizes:
            return []
        with self._exclusive():
            self._control.launch.library = os.fsencode(library)
            memory = self._memory(sum(sizes))
            self._run(b"V", 1, "", library)
            ends = np.cumsum(sizes)
            parts = [memory[end - size : end].copy() for size, end in zip(sizes, ends, strict=True)]
            del memory
            self._release_memory()
            return parts

    def launch(
        self,
        kernel: str,
        library: str | os.PathLike[str],
        layout: MemoryLayout,
        record: Callable[[Any], None],
        n_runners: int,
    ) -> int:
        """Run one launch.

        Parameters
        ----------
        kernel : str
            Its name, for messages.
        library : path
        layout : MemoryLayout
        record : callable
            Fills the protocol.Launch it is given, apart from the memory.
        n_runners : int

        Returns
        -------
        int
            How often the runners switched between threads.
        """
        with self._exclusive():
            launch = self._control.launch
            launch.library = os.fsencode(library)
            record(launch)
            launch.next_block = launch.failed = launch.output_used = 0
            memory = self._memory(layout.file_bytes)
            layout.copy_in(memory)
            layout.describe(launch)
            try:
                self._run(b"L", n_runners, kernel, library)
            finally:
                self._show_output(launch)
            layout.copy_out(kernel, memory)
            del memory
            self._release_memory()
            return sum(self._control.reports[i].switches for i in range(n_runners))

    def _run(self, letter, n_runners, kernel, library):
        for index in range(n_runners):
            ctypes.memset(
                ctypes.byref(self._control.reports[index]), 0, ctypes.sizeof(protocol.Report)
            )
        runners = [self._runner(index) for index in range(n_runners)]
        for runner in runners:
            runner.command(letter)
        dead = [index for index, runner in enumerate(runners) if not runner.answered()]
        if not dead:
            return
        statuses = {index: self._runners.pop(index).end() for index in dead}
        # The fault that was found; runners that died without a word come last.
        told = [index for index in dead if self._control.reports[index].fault]
        index = min(told or dead, key=lambda index: tuple(self._control.reports[index].block)[::-1])
        raise _error_from(self._control.reports[index], statuses[index], kernel, library)

    def _show_output(self, launch):
        used = min(launch.output_used, protocol.OUTPUT_BYTES)
        if used:
            text = ctypes.string_at(ctypes.addressof(launch) + protocol.Launch.output.offset, used)
            sys.stdout.write(text.decode(errors="replace"))


def _error_from(report, status, kernel, library):
    if not report.fault:
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return KernelError(f"{kernel}: the kernel's process ended with {name}", kernel)
    message = report.message.decode(errors="replace")
    block, thread = tuple(report.block), tuple(report.thread)
    file, line = os.fsdecode(report.file) or None, report.line or None
    if file is None or is_ours(file):
        found = find_line(library, report.frames[: report.n_frames])
        file, line = found if found[0] else (file, line)
    if "{other}" in message:
        other_file, other_line = find_line(library, report.other_frames[: report.n_other_frames])
        message = message.replace("{other}", f"{other_file}:{other_line}")
    if "{here}" in message:
        message = message.replace("{here}", f"{file}:{line}")
    elif file:
        message += f" at {file}:{line}"
    error = BY_FAULT[report.fault] if report.fault < len(BY_FAULT) else CudaSimError
    return error(
        f"{kernel}: {message} [block {block} thread {thread}]", kernel, file, line, block, thread
    )


POOL = RunnerPool()
