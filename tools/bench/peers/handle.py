"""The parent's side of a peer's process."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from . import INSTALL

__all__ = ["Peer", "PeerError", "PeerMissing", "child_environment"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STDERR_TAIL = 400


class PeerError(Exception):
    """A peer could not do what it was asked; its text is the reason."""


class PeerMissing(PeerError):
    """The peer is not installed."""


def child_environment(n_threads: int) -> dict[str, str]:
    """The environment of a child: its packages, and thread pools that sleep when idle.

    OMP_WAIT_POLICY stays as the user has it, to try what spinning would change.
    """
    environment = dict(os.environ)
    here = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [here, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.update({name: str(n_threads) for name in _THREAD_VARIABLES})
    return environment


class Peer:
    """A running peer.

    Parameters
    ----------
    name : str
        A module of the package.
    n_threads : int
        The most threads it will be asked to use.
    package : str
        Whose ``__main__`` is run.
    install : mapping of str to str
        What to install for each name.

    Raises
    ------
    PeerMissing
        What it measures is not installed; says how to install it.
    PeerError
        It does not start.
    """

    def __init__(
        self,
        name: str,
        n_threads: int,
        package: str = __package__,
        install: Mapping[str, str] = INSTALL,
    ) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", package, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=child_environment(n_threads),
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        try:
            hello = self._reply()
            if "missing" in hello:
                raise PeerMissing(
                    f"{name}: not installed; {install.get(name, '')} ({hello['missing']})"
                )
        except BaseException:
            self.close()
            raise
        self.about = hello["ready"]

    def ask(
        self, do: str, progress: Callable[[int, int], None] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Send a request to the peer's `Server` and return its reply; raises PeerError.

        `progress`, if given, is told what is done, and all, where the request says so on its way.
        """
        self.send(do, **arguments)
        return self.receive(progress)

    def send(self, do: str, **arguments: Any) -> None:
        """Send a request; each must be followed by `receive`."""
        try:
            self._requests.write(json.dumps(dict(do=do, **arguments)) + "\n")
            self._requests.flush()
        except (BrokenPipeError, ValueError):
            raise PeerError(self._death()) from None

    def receive(self, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """The reply to the last request; raises PeerError."""
        while "progress" in (reply := self._reply()):
            if progress is not None:
                progress(*reply["progress"])
        if "error" in reply:
            raise PeerError(f"{self.name}: {reply['error']}")
        return reply

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()
        self._stderr.close()

    def _reply(self):
        line = self._replies.readline()
        if not line:
            raise PeerError(self._death())
        return json.loads(line)

    def _death(self):
        """What to say of a process that has ended: its code and last words."""
        code = self._process.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL))
        words = " ".join(self._stderr.read().decode(errors="replace").split())
        return f"{self.name}: its process ended with code {code}: {words}"
