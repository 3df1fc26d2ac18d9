"""Rows by index: embeddings, and the outputs of experts back to their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowlevel import checks, devices
from lowlevel.plans import shown, taken

if TYPE_CHECKING:
    from lowlevel.arrays import Array
    from lowlevel.pool import Pool


def gather_rows(table: Array, ids: Array, out: Array, *, n_threads: int | None = None) -> Array:
    """``out[i] = table[ids[i]]``, rounded to nearest even where out has fewer bits.

    Parameters
    ----------
    table : array of float32, float16 or bfloat16, (n_rows, n)
        A contiguous last axis. Weights in other formats: `quant.embed`.
    ids : array of int32, (n_tokens,)
        On the device of the table.
    out : array, (n_tokens, n)
        Memory of its own, of any dtype that activations have there; a contiguous last axis.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `out`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.
    IndexError
        An id that the table does not have; nothing has been written. (On a GPU ids are not brought to the host to look:
        their rows of out become NaN.)
    """
    device = devices.of_array(table, "table")
    source = checks.rows_of(table, "table", device, checks.FLOATS)
    checks.check_array(ids, "ids", device, ("int32",))
    if table.ndim != 2 or ids.ndim != 1:
        raise ValueError(
            f"table, ids: expected (n_rows, n) and (n_tokens,), got {tuple(table.shape)} and {tuple(ids.shape)}"
        )
    checks.check_alignment(ids, "ids", device)
    shape = (ids.shape[0], table.shape[1])
    target = checks.check_result(
        out, "out", device, device.activations, shape, {"table": table, "ids": ids}
    )
    devices.kernels("lowlevel", device, "ops.rows").gather(device, source, ids, target, n_threads)
    return out


def put_rows(rows: Array, ids: Array, out: Array, *, n_threads: int | None = None) -> Array:
    """``out[..., ids[i], :] = rows[..., i, :]``, rounded to nearest even where out has fewer bits: into a K/V cache.

    Parameters
    ----------
    rows : array of float32, float16 or bfloat16, (n_tokens, n) or (planes, n_tokens, n)
        A contiguous last axis.
    ids : array of int32, (n_tokens,)
        On the device of the rows, all different: which of two rows would stay, nobody says.
    out : array of one of those types, (n_rows, n) or (planes, n_rows, n)
        Memory of its own; a contiguous last axis. Rows that ids do not name stay as they are.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `out`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.
    IndexError
        An id that out does not have; nothing has been written. (On a GPU ids are not brought to the host to look:
        their rows are left out.)
    """
    device = devices.of_array(rows, "rows")
    source = checks.rows_of(rows, "rows", device, checks.FLOATS)
    checks.check_array(out, "out", device, checks.FLOATS)
    shape = (*rows.shape[:-2], out.shape[-2] if out.ndim > 1 else 0, rows.shape[-1])
    checks.check_vector(ids, "ids", device, ("int32",), rows.shape[-2])
    target = checks.check_result(
        out, "out", device, checks.FLOATS, shape, {"rows": rows, "ids": ids}
    )
    devices.kernels("lowlevel", device, "ops.rows").put(device, source, ids, target, n_threads)
    return out


@dataclass(frozen=True)
class ScatterPlan:
    """What `scatter_add` does: see `plan_scatter_add`.

    Attributes
    ----------
    device : str
    n_rows, n_tokens : int
    in_order : bool
        Rows stand in the order of their tokens, as many of each: no ids, no scratch.
    scratch : tuple of (str, int)
        Tag and bytes of each array taken from the pool.
    """

    device: str
    n_rows: int
    n_tokens: int
    in_order: bool
    scratch: tuple

    @property
    def path(self) -> str:
        """The kernels that run: "in order" of the tokens, or "by token"."""
        return "in order" if self.in_order else "by token"

    @property
    def scratch_bytes(self) -> int:
        """What the pool's use grows by during the call, to the byte."""
        return taken(self.scratch)

    def to_dict(self) -> dict:
        """The plan as plain values."""
        return {
            "path": self.path,
            "device": self.device,
            "n_rows": self.n_rows,
            "n_tokens": self.n_tokens,
            "in_order": self.in_order,
            "scratch": shown(self.scratch),
            "scratch_bytes": self.scratch_bytes,
        }


def plan_scatter_add(
    n_rows: int, n_tokens: int, *, in_order: bool = False, device: str = "cpu"
) -> ScatterPlan:
    """What `scatter_add` takes for `n_rows` rows and `n_tokens` tokens.

    Parameters
    ----------
    n_rows, n_tokens : int
    in_order : bool
        For calls without `tokens`.
    device : str
        "cpu", "cuda:N" or "cudasim:N".

    Raises
    ------
    TypeError, ValueError
    """
    n_rows = checks.whole_number(n_rows, "n_rows", 0, 2**31 - 1)
    n_tokens = checks.whole_number(n_tokens, "n_tokens", 0, 2**31 - 1)
    in_order = checks.flag(in_order, "in_order")
    where = devices.get(device)
    scratch = ()
    if not in_order and n_rows and n_tokens:
        scratch = devices.kernels("lowlevel", where, "ops.rows").scatter_scratch(n_rows, n_tokens)
    return ScatterPlan(where.name, n_rows, n_tokens, in_order, scratch)


def scatter_add(
    rows: Array,
    out: Array,
    *,
    tokens: Array | None = None,
    weights: Array | None = None,
    pool: Pool | None = None,
    n_threads: int | None = None,
) -> Array:
    """``out[tokens[i]] += weights[i] * rows[i]``, i rising: experts' outputs back to their tokens.

    The order of additions is that of the rows for any number of threads, so that bits do not depend on it: each is one
    fused multiply and add in float32, and out is rounded once, at the end.

    Parameters
    ----------
    rows : array, (n_rows, n)
        Activations, a contiguous last axis.
    out : array, (n_tokens, n)
        Added to; memory of its own, of any dtype that activations have there; a contiguous last axis.
    tokens : array of int32, (n_rows,), optional
        The row of out that each row goes to. None: n_rows / n_tokens rows one after the other are of one token.
    weights : array of float32, (n_rows,), optional
        Contiguous. None: all ones.
    pool : lowlevel.Pool, optional
        Where the scratch that `plan_scatter_add` says comes from (and goes back to). None: private memory for the call.
    n_threads : int, optional
        Default: all CPUs of this process. Not for a GPU.

    Returns
    -------
    array
        `out`.

    Raises
    ------
    TypeError, ValueError
        An argument that does not fit; nothing has been written.
    IndexError
        A token that out does not have; nothing has been written. (On a GPU tokens are not brought to the host to look:
        their rows are left out.)
    lowlevel.BudgetError
        The pool has no room for the scratch; nothing has been written.
    """
    device = devices.of_array(rows, "rows")
    dtypes = device.activations
    source = checks.rows_of(rows, "rows", device, dtypes)
    checks.check_array(out, "out", device, dtypes)
    if rows.ndim != 2 or out.ndim != 2 or rows.shape[1] != out.shape[1]:
        raise ValueError(
            f"rows, out: expected (n_rows, n) and (n_tokens, n), got {tuple(rows.shape)} and {tuple(out.shape)}"
        )
    n_rows, n_tokens = rows.shape[0], out.shape[0]
    if tokens is not None:
        checks.check_vector(tokens, "tokens", device, ("int32",), n_rows)
    elif n_rows % n_tokens if n_tokens else n_rows:
        raise ValueError(
            f"tokens: {n_rows} rows do not make {n_tokens} tokens with as many each; give tokens"
        )
    checks.check_weights(weights, "weights", device, n_rows)
    inputs = {"rows": rows, "tokens": tokens, "weights": weights}
    target = checks.check_result(out, "out", device, dtypes, tuple(out.shape), inputs)
    checks.check_pool(pool, device)
    plan = plan_scatter_add(n_rows, n_tokens, in_order=tokens is None, device=device.name)
    run = devices.kernels("lowlevel", device, "ops.rows").scatter_add
    arguments = (device, source, target, tokens, weights, n_threads)
    if not plan.scratch_bytes:
        run(*arguments, ())
    elif pool is None:
        run(*arguments, [device.empty((n,), np.dtype(np.uint8)) for _, n in plan.scratch])
    else:
        with (
            pool.call("scatter_add", scratch_bytes=plan.scratch_bytes),
            pool.scope("scatter_add"),
        ):
            run(*arguments, [pool.empty(n, "uint8", tag=tag) for tag, n in plan.scratch])
    return out
