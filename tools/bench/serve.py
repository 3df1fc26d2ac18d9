"""The child's side of ``kqcap bench --vs``: a process that answers requests, one JSON object a line; see peers/handle.py."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["serve"]


def serve(package: str, make_server: Callable[[Any, Callable[[int, int], None]], Any]) -> None:
    """Answer the requests on standard input until it ends.

    Standard output belongs to the replies; whatever libraries print goes to standard error.

    Parameters
    ----------
    package : str
        Of the module that ``sys.argv[1]`` names, whose ``describe()`` is the first reply.
    make_server : callable
        (module, progress) -> an object whose methods are the requests; `progress` tells the parent what is done, and all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(message):
        replies.write(json.dumps(message) + "\n")

    try:
        module = importlib.import_module(f".{sys.argv[1]}", package)
        reply(dict(ready=module.describe()))
    except ImportError as error:
        reply(dict(missing=str(error)))
        return
    server = make_server(module, lambda done, total: reply(dict(progress=(done, total))))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply(getattr(server, request.pop("do"))(**request))
        except Exception as error:
            traceback.print_exc()
            reply(dict(error=f"{type(error).__name__}: {error}"))
