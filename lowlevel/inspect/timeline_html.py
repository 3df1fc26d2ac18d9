"""`lowlevel.inspect.timeline`'s data as one HTML file; what it looks like is in timeline.html."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import TYPE_CHECKING

from .timeline_png import PALETTE

if TYPE_CHECKING:
    from typing import Any


# Where the template wants what.
_DATA, _PALETTE = '"@@DATA@@"', '"@@PALETTE@@"'


def html(data: dict[str, Any]) -> bytes:
    """`timeline`'s data as one HTML file that needs nothing else and asks no network.

    Returns
    -------
    bytes
    """
    return _template().replace(_DATA, _script_json(data)).encode()


@functools.cache
def _template():
    template = (
        importlib.resources.files("lowlevel.inspect").joinpath("timeline.html").read_text("utf-8")
    )
    assert template.count(_DATA) == template.count(_PALETTE) == 1
    return template.replace(_PALETTE, json.dumps(PALETTE))


def _script_json(data):
    """JSON that cannot end the script element it stands in, whatever the trace's names say."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
