"""Products with GGUF weights, straight from their blocks: ``x @ t.T``."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING

import numpy as np

from lowlevel import arrays, devices
from lowlevel.pool.arena import align_up

from .formats import block_format
from .tensor import QuantTensor, check_tensor

if TYPE_CHECKING:
    from lowlevel.arrays import Array
    from lowlevel.pool import Pool

    from .tensor import QType

# Float32 values of x, out or t: 2**56 bytes are more than processors have addresses for.
_MOST_VALUES = 2**54


def matmul(
    x: Array,
    t: QuantTensor,
    *,
    pool: Pool | None = None,
    out: Array | None = None,
    exact: bool = False,
    experts: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """``x @ t.T`` without ever making the weights floats as a whole.

    Parameters
    ----------
    x : array of float32, (n, columns)
        Activations, on the CPU or a GPU; a contiguous last axis, any row stride.
    t : QuantTensor, (rows, columns), or (n_expert, rows, columns) with `experts`
        Any supported format; on the device of x.
    pool : lowlevel.Pool, optional
        Where the scratch comes from (and goes back to). None: private memory for the call.
    out : array of float32, (n, rows), optional
        On the device of x; where to write. A contiguous last axis, any row stride. Must not overlap `x` or `t`.
    exact : bool
        False: x is rounded to signed bytes, with a scale for every 32 or 256
        (K-quants) values, as ggml does; products and sums within a block are exact integers.
        True: x stays float32. With F32, F16 and BF16 weights x always stays float32.
    experts : sequence or array of int, (n,), optional
        For a stack of matrices: which one each row of x meets. Without it t is one matrix.
    n_threads : int, optional
        None: every CPU of this process. Not for a GPU.

    Returns
    -------
    array of float32, (n, rows)
        `out` if given. A GPU may still be writing it: what is asked of it next waits for that.

    Raises
    ------
    TypeError, ValueError, IndexError
        An argument that does not fit; nothing has been written.
    lowlevel.BudgetError
        The pool has no room for `matmul_scratch_bytes`; nothing has been written.

    Notes
    -----
    A row of x gives the same bits whatever other rows stand beside it, for any number of threads,
    and as one expert's row or with that expert's matrix alone. On a GPU that holds as long as a
    matrix meets up to 8 rows (with float32 activations 4) in both calls, or more in both: float32
    sums have another order then. On the CPU it holds for F32, F16 and BF16 weights as long as in
    both calls every matrix meets one row only, or in both some matrix meets more.

    Error for normally distributed x, root mean square, over the product of the norms of the two
    vectors: 0.0055 / sqrt(columns) (0.0071 with K-quants) for int8 activations, which is ggml's
    too: for each value a step, 1/127 of the largest x of its block, over the square root of 12, and
    at most half a step. With ``exact=True`` below 1e-6.

    A NaN or an infinity in a row of x: with float32 activations it goes through the products; with
    int8 activations the whole output row is NaN. Values below 2**-100 in a block whose values are
    all that small count as zero.
    """
    _check_flags(exact)
    device = _checked_device(t, experts)
    _check_pool(pool, device)
    n_rows = t.shape[-2]
    _check_x(x, t, device)
    n = x.shape[0]
    out = _checked_out(out, x, t, n_rows, device)
    order, used, counts = _sorted_by_expert(experts, n, t)
    plan = _plan(n, t, exact, n_threads, device.name)
    if n == 0 or n_rows == 0:
        return out if out is not None else device.empty((n, n_rows), np.dtype(np.float32))
    if pool is None:
        return _into(out, plan, device, x, t, order, used, counts, _own_scratch(plan, device))
    if not plan.scratch_bytes and pool.closed:
        raise ValueError("pool: it is closed")
    call = pool.call("matmul", scratch_bytes=align_up(plan.scratch_bytes))  # marks it in a trace
    with call, pool.scope("matmul"):  # which gives the scratch back, whatever happens
        scratch = None
        if plan.scratch_bytes:
            scratch = pool.empty(plan.scratch_bytes, "uint8", tag="matmul")
        return _into(out, plan, device, x, t, order, used, counts, scratch)


def matmul_scratch_bytes(
    n: int,
    t: QuantTensor | tuple[QType, tuple[int, ...]],
    *,
    exact: bool = False,
    n_threads: int | None = None,
    device: str | None = None,
) -> int:
    """Bytes that `matmul` takes from its pool for `n` rows of x, to the byte.

    Parameters
    ----------
    n : int
        Rows of x.
    t : QuantTensor or (qtype, shape)
        The weights, or what is known of them. Three axes are a stack of experts.
    exact, n_threads
        As for `matmul`.
    device : str, optional
        "cpu", "cuda:N" or "cudasim". Default: the tensor's, else "cpu".

    Returns
    -------
    int
        What ``pool.used`` grows by during the call (whole units of 256 bytes). It depends on sizes
        only, not on which experts are asked for.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise ValueError(f"n: expected a number of rows, got {n!r}")
    if device is None:
        device = t.device if isinstance(t, QuantTensor) else "cpu"
    device = devices.canonical_name(device)
    if not isinstance(t, QuantTensor):
        t = _Outline(*t)
    if len(t.shape) not in (2, 3):
        raise ValueError(f"t: expected (rows, columns) or (n_expert, rows, columns), got {t.shape}")
    if n == 0 or 0 in t.shape[-2:]:
        return 0
    return align_up(_plan(int(n), t, exact, n_threads, device).scratch_bytes)


class _Outline:
    """Type and shape of a tensor without its data."""

    def __init__(self, qtype, shape):
        self.format = block_format(qtype)
        try:
            self.shape = tuple(map(operator.index, shape))
        except TypeError:
            raise TypeError(f"t: expected a shape of ints, got {shape!r}") from None
        if self.shape and min(self.shape) < 0:
            raise ValueError(f"t: expected a shape of lengths of at least 0, got {self.shape}")
        self.format.row_blocks(self.shape[-1])


def _plan(n, t, exact, n_threads, device):
    _check_sizes(n, t.shape)
    if device != "cpu":
        if n_threads is not None:
            raise ValueError(f"n_threads: {device} has no use for it; leave it out")
        from .gpu.matmul_plan import plan_matmul as plan_on_device

        return plan_on_device(n, t.format, t.shape[-1], len(t.shape) == 3, bool(exact))
    plan_matmul, resolve_n_threads = _cpu_planner()
    n_experts = t.shape[0] if len(t.shape) == 3 else None
    n_threads = resolve_n_threads(n_threads)
    return plan_matmul(n, t.format, *t.shape[-2:], n_experts, bool(exact), n_threads)


# What loads Numba is imported when first needed; an import statement in every call would cost
# microseconds each time.


@functools.cache
def _cpu_planner():
    from lowlevel.cpu.threads import resolve_n_threads

    from .cpu.matmul.plan import plan_matmul

    return plan_matmul, resolve_n_threads


@functools.cache
def _cpu_run():
    from .cpu.matmul import run as matmul_run

    return matmul_run.run


def _own_scratch(plan, device):
    """Private memory from a multiple of 64 on."""
    if device.name != "cpu":
        return (
            device.empty((plan.scratch_bytes,), np.dtype(np.uint8)) if plan.scratch_bytes else None
        )
    memory = np.empty(plan.scratch_bytes + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + plan.scratch_bytes]


def _into(out, plan, device, x, t, order, used, counts, scratch):
    """The product, in `out` if there is one."""
    if out is None:
        out = device.empty((len(x), t.shape[-2]), np.dtype(np.float32))
    if t.columns == 0:
        out[...] = 0
    elif device.name == "cpu":
        _cpu_run()(plan, x, t, out, order, used, counts, scratch)
    else:
        from .gpu import matmul as launcher

        launcher.run(plan, device, x, t, out, order, used, counts, scratch)
    return out


# ---------------------------------------------------------------- checks


@functools.lru_cache(maxsize=512)  # most calls are of few sizes
def _check_sizes(n, shape):
    """Raise unless x, out and t are of a size that a memory may have."""
    rows, columns = shape[-2:]
    for name, n_values, what in (
        ("t", math.prod(shape), f"weights of shape {shape}"),
        ("n", n * max(rows, columns), f"{n} rows of x, of {columns} columns and {rows} products,"),
    ):
        if n_values > _MOST_VALUES:
            raise ValueError(f"{name}: {what} are more than any memory holds")


def _check_flags(exact):
    if not isinstance(exact, (bool, np.bool_)):
        raise TypeError(f"exact: expected True or False, got {exact!r}")


def _check_pool(pool, device):
    if pool is not None and getattr(pool, "device", None) != device.name:
        raise ValueError(f"pool: expected a lowlevel.Pool on {device.name!r} or None, got {pool!r}")


def _checked_device(t, experts):
    """The device of a tensor that fits."""
    check_tensor(t)
    if experts is None and t.ndim != 2:
        hint = "; a stack of matrices needs experts=" if t.ndim == 3 else ""
        raise ValueError(f"t: expected shape (rows, columns), got {t.shape}{hint}")
    if experts is not None and t.ndim != 3:
        raise ValueError(f"t: with experts= expected (n_expert, rows, columns), got {t.shape}")
    return devices.of_array(t.data, "t")


def _check_matrix(name, array, shape_text, device):
    wanted = "NumPy array" if device.name == "cpu" else f"array on {device.name}"
    if not hasattr(array, "dtype") or array.dtype != np.float32:
        given = f"{array.dtype} array" if hasattr(array, "dtype") else type(array).__name__
        raise TypeError(f"{name}: expected a float32 {wanted} {shape_text}, got {given}")
    there = devices.of_array(array, name)
    if there is not device:
        raise ValueError(
            f"{name}: lies on {there.name}, and t on {device.name}; lowlevel.asarray (of a "
            f"QuantTensor: to) brings either to the other's device"
        )
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape {shape_text}, got {array.shape}")
    if array.size and array.shape[1] > 1 and array.strides[1] != 4:
        raise ValueError(
            f"{name}: the last axis must be contiguous; its stride is {array.strides[1]} bytes, "
            f"not 4 (numpy.ascontiguousarray makes a copy that is)"
        )
    if device.name != "cpu" and array.size:
        if device.address(array) % 4 or (array.shape[0] > 1 and array.strides[0] % 4):
            raise ValueError(f"{name}: the array is not aligned to its 4-byte items")


def _check_x(x, t, device):
    _check_matrix("x", x, f"(n, {t.columns})", device)
    if x.shape[1] != t.columns:
        raise ValueError(
            f"x: expected (n, {t.columns}) for t of shape {t.shape}, got {x.shape}; "
            f"the product is x @ t.T"
        )


def _checked_out(out, x, t, n_rows, device):
    if out is None:
        return None
    shape = (x.shape[0], n_rows)
    _check_matrix("out", out, str(shape), device)
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not device.writable(out):
        raise ValueError("out: is read-only")
    if out.shape[0] > 1 and out.size and abs(out.strides[0]) < 4 * n_rows:
        raise ValueError(f"out: its rows overlap each other (strides {out.strides})")
    for name, other in (("x", x), ("t", t.data)):
        if device.overlap(out, other):
            raise ValueError(f"out: overlaps {name}; give it memory of its own")
    return out


def _sorted_by_expert(experts, n, t):
    """(rows of x sorted by expert or None, experts that have rows, how many rows each)."""
    if experts is None:
        return None, [0], [n]
    has_dtype = hasattr(experts, "dtype")
    experts = arrays.asnumpy(experts, "experts") if has_dtype else np.asarray(experts)
    if experts.shape != (n,):
        raise ValueError(
            f"experts: expected shape ({n},), one index a row of x; got {experts.shape}"
        )
    if n == 0:
        return None, [], []
    if experts.dtype.kind not in "iu":
        raise TypeError(f"experts: expected integers, got {experts.dtype}")
    lowest, highest = int(experts.min()), int(experts.max())
    if lowest < 0 or highest >= t.shape[0]:
        bad = lowest if lowest < 0 else highest
        raise IndexError(f"experts: t has experts 0 to {t.shape[0] - 1}; got {bad}")
    order = np.argsort(experts, kind="stable")
    counts = np.bincount(experts, minlength=t.shape[0])
    used = np.flatnonzero(counts)
    return order, used, counts[used]
