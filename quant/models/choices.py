"""How a model is run on a device, by checked arguments of `quant.load`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowlevel.sizes import parse_size

from .kv_cache import kv_type as kv_type_named
from .step import MLA, Choices

if TYPE_CHECKING:
    from lowlevel.devices import Device
    from lowlevel.sizes import Size

    from .config import ModelConfig

MOST_CONTEXT = 2**31 - 64
DEFAULT_CONTEXT = 16384
# Dtypes that a cache and attention have in common where activations may be halves; the last is the common one.
HALVES = ("float16", "bfloat16")


def choices_of(
    config: ModelConfig,
    where: Device,
    *,
    n_ctx: int | None,
    n_ubatch: int,
    amb: Size | None,
    kv_type: str,
    mla: int | str,
    exact: bool,
    method: str,
    n_threads: int | None,
) -> Choices:
    """How a model is run on a device, by checked arguments of `load`."""
    n_ctx = min(config.context_length, DEFAULT_CONTEXT) if n_ctx is None else n_ctx
    for name, value in (("n_ctx", n_ctx), ("n_ubatch", n_ubatch)):
        check_tokens(name, value)
    if mla not in MLA or isinstance(mla, bool):
        raise ValueError(f"mla: expected one of {MLA}, got {mla!r}")
    if not isinstance(exact, (bool, np.bool_)):
        raise TypeError(f"exact: expected True or False, got {exact!r}")
    if method not in ("auto", "steps"):
        raise ValueError(f"method: expected 'auto' or 'steps', got {method!r}")
    kind = kv_type_named(kv_type)
    halves = [dtype for dtype in HALVES if dtype in where.activations]
    half = halves[-1] if halves else "float32"
    if not where.has_threads and n_threads is not None:
        raise ValueError(f"n_threads: {where.name} has no use for it; leave it out")
    return Choices(
        n_ctx=int(n_ctx),
        n_ubatch=min(int(n_ubatch), int(n_ctx)),
        kv_type=kind,
        amb=None if amb is None else parse_size(amb, "amb"),
        mla=mla,
        exact=bool(exact),
        method=method,
        n_threads=where.resolve_n_threads(n_threads) if where.has_threads else None,
        device=where.name,
        rows="float32" if exact else half,
        heads=kind.name if kind.name in halves else half,
        in_token_order=where.products_sort_rows,
    )


def check_tokens(name: str, value: Any) -> None:
    """Raise for what is no number of tokens."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if not 1 <= value <= MOST_CONTEXT:
        raise ValueError(f"{name}: expected 1 to {MOST_CONTEXT}, got {value}")
