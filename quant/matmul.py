"""Products with GGUF weights, straight from their blocks: ``x @ t.T``."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING

import numpy as np

from lowlevel import arrays, checks, devices
from lowlevel.plans import NothingToDo

from .formats import block_format
from .tensor import QuantTensor, check_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.arrays import Array
    from lowlevel.plans import Plan
    from lowlevel.pool import Pool

    from .tensor import QType

    Sizes = tuple[QType, tuple[int, ...]]

# Float32 values of x, out or t: 2**56 bytes are more than processors have addresses for.
_MOST_VALUES = 2**54
ACTIVATIONS = ("int8", "bfloat16", "float32")
NOTHING = NothingToDo()


def matmul(
    x: Array,
    t: QuantTensor | Sequence[QuantTensor],
    *,
    pool: Pool | None = None,
    out: Array | None = None,
    exact: bool = False,
    activations: str | None = None,
    experts: Array | Sequence[int] | None = None,
    x_rows: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """``x @ t.T`` without ever making the weights floats as a whole.

    Parameters
    ----------
    x : array of float32, (n, columns)
        Activations, on the CPU or a GPU; a contiguous last axis, any row stride. On a GPU float16 and
        bfloat16 too.
    t : QuantTensor, (rows, columns), or (n_expert, rows, columns) with `experts`
        Any supported format; on the device of x. Or a sequence of such tensors of one format and equal
        columns and experts (gate and up, say): their products stand side by side.
    pool : lowlevel.Pool, optional
        Where the scratch comes from (and goes back to). None: private memory for the call.
    out : array of float32, (n, rows), optional
        On the device of x; where to write. A contiguous last axis, any row stride. Must not overlap `x` or `t`.
        On a GPU float16 and bfloat16 too: float32 sums, rounded once.
    exact : bool
        True: ``activations="float32"``.
    activations : {None, "int8", "bfloat16", "float32"}
        What x is rounded to. "int8": signed bytes, with a scale for as many values as a block of t
        has weights (32 or, of super-blocks, 256), as ggml does; products and sums within a block are exact integers.
        "bfloat16": x and the weights, as dequantised, are rounded to bfloat16 (GPUs of compute capability
        9.0). "float32": x stays as it is. None: int8, but on such a GPU bfloat16 where a matrix meets more
        than 8 rows of x. With F32, F16 and BF16 weights x is float32 always.
    experts : sequence or array of int, (n,), optional
        For a stack of matrices: which one each row of x meets. Without it t is one matrix. An array of
        int32 or int64 on the GPU stays there: the host does not wait for it, and a row whose expert does
        not exist becomes NaN, where it is an IndexError otherwise.
    x_rows : array of int, (n,), optional
        ``x[x_rows] @ t.T`` without that copy of x, which has rows of its own number then; `out` and `experts` go by the
        n rows that are asked for. A token's row meets all of its experts so. On a GPU with `experts` only, an array of
        int32 there, without gaps: the host does not look at it, and a row that x does not have becomes NaN.
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
    sums have another order then, and activations may be others. With experts that is n over the number
    of experts, rounded up. On the CPU it holds for F32, F16 and BF16 weights as long as in both calls
    every matrix meets one row only, or in both some matrix meets more.

    Error for normally distributed x, root mean square, over the product of the norms of the two
    vectors: 0.0055 / sqrt(columns) (0.0071 with super-blocks of 256) for int8 activations, which is ggml's
    too (but for blocks of 64 and 128, NVFP4, Q1_0 and Q2_0: 0.0061 and 0.0066, where ggml has a scale for
    each 32 values): for each value a step, 1/127 of the largest x of its block, over the square root of 12, and
    at most half a step. 0.0025 / sqrt(columns) for bfloat16; at most 1/128 of each product, for x and
    a weight lose up to 1/256 each. With float32 below 1e-6.

    A NaN or an infinity in a row of x: with float32 and bfloat16 activations it goes through the
    products; with int8 activations the whole output row is NaN. Values below 2**-100 in a block whose
    values are all that small count as zero with int8.
    """
    activations = _checked_activations(exact, activations)
    matrices = _matrices(t)
    device = _checked_device(matrices, experts)
    t = matrices[0]
    checks.check_pool(pool, device)
    n_rows = t.shape[-2] if len(matrices) == 1 else sum(each.shape[-2] for each in matrices)
    _check_x(x, t, device)
    x_rows = _checked_x_rows(x_rows, x.shape[0], experts, device)
    n = x.shape[0] if x_rows is None else len(x_rows)
    out = _checked_out(out, n, x, matrices, n_rows, device)
    experts = _checked_experts(experts, n, t, device)
    plan = _plan(n, matrices, activations, n_threads, device)
    call = plan, device, x, matrices, out, (n, n_rows), experts, x_rows
    if pool is None or not plan.scratch_bytes:
        own = plan.scratch_bytes and device.empty_aligned((plan.scratch_bytes,), np.dtype(np.uint8))
        return _run(*call, own)
    marked = pool.call("matmul", scratch_bytes=plan.scratch_bytes)  # in a trace
    with marked, pool.scope("matmul"):  # which gives the scratch back, whatever happens
        return _run(*call, pool.empty(plan.scratch_bytes, "uint8", tag="matmul"))


def _run(plan, device, x, matrices, out, shape, experts, x_rows, scratch):
    """The product, in `out` if there is one: made only now that nothing can be refused any more."""
    if out is None:
        out = device.empty(shape, np.dtype(np.float32))
    if plan is not NOTHING:
        run = devices.kernels("quant", device, "matmul.run").run
        run(plan, device, x, matrices, out, experts, x_rows, scratch)
    elif out.size:  # x has no columns
        out[...] = 0
    return out


def matmul_scratch_bytes(
    n: int,
    t: QuantTensor | Sizes | Sequence[QuantTensor | Sizes],
    *,
    exact: bool = False,
    activations: str | None = None,
    n_threads: int | None = None,
    device: str | None = None,
) -> int:
    """Bytes that `matmul` takes from its pool for `n` rows of x, to the byte.

    Parameters
    ----------
    n : int
        Rows of x.
    t : QuantTensor or (qtype, shape), or a sequence of several
        The weights, or what is known of them. Three axes are a stack of experts.
    exact, activations, n_threads
        As for `matmul`.
    device : str, optional
        "cpu", "cuda:N" or "cudasim:N". Default: the tensor's, else "cpu".

    Returns
    -------
    int
        What ``pool.used`` grows by during the call (whole units of 256 bytes). It depends on sizes
        only, not on which experts are asked for.
    """
    plan = matmul_plan(
        n, t, exact=exact, activations=activations, n_threads=n_threads, device=device
    )
    return plan.scratch_bytes


def matmul_plan(
    n: int,
    t: QuantTensor | Sizes | Sequence[QuantTensor | Sizes],
    *,
    exact: bool = False,
    activations: str | None = None,
    n_threads: int | None = None,
    device: str | None = None,
) -> Plan:
    """How `matmul` would run: the path it takes and its scratch, from sizes alone.

    Parameters
    ----------
    n, t, exact, activations, n_threads, device
        As for `matmul_scratch_bytes`.

    Returns
    -------
    lowlevel.plans.Plan
        Of the device's own kind: `path`, `scratch` (sections of one block) and `scratch_bytes`, ``to_dict()``;
        unless there is nothing to do, `activations` as well.
    """
    n = checks.whole_number(n, "n", 0)
    activations = _checked_activations(exact, activations)
    outlines = _outlines(t)
    if device is None:
        device = getattr(outlines[0], "device", "cpu")
    return _plan(n, outlines, activations, n_threads, devices.get(device))


def _outlines(t):
    """The tensors of `t`, or types and shapes of such, one or a sequence of them that may be multiplied at once."""
    if isinstance(t, QuantTensor):
        return [t]
    if not isinstance(t, (tuple, list)) or not t:
        raise TypeError(f"t: expected a QuantTensor, (qtype, shape) or some of these, got {t!r}")
    some = t if isinstance(t[0], (QuantTensor, tuple, list)) else [t]
    outlines = [each if isinstance(each, QuantTensor) else _Outline(each) for each in some]
    first = outlines[0]
    for each in outlines:
        if len(each.shape) not in (2, 3):
            raise ValueError(
                f"t: expected (rows, columns) or (n_expert, rows, columns), got {each.shape}"
            )
        _check_alike(first, each)
    return outlines


def _check_alike(first, other):
    """Raise unless two tensors can be multiplied with at once."""
    pair = [each.shape[:-2] + each.shape[-1:] for each in (first, other)]
    if first.format is not other.format or pair[0] != pair[1]:
        raise ValueError(
            f"t: all of one format and equal but for their rows; got {first} and {other}"
        )


class _Outline:
    """Type and shape of a tensor without its data."""

    def __init__(self, outline):
        if not isinstance(outline, (tuple, list)) or len(outline) != 2:
            raise TypeError(f"t: expected a QuantTensor or (qtype, shape), got {outline!r}")
        qtype, shape = outline
        self.format = block_format(qtype)
        try:
            self.shape = tuple(map(operator.index, shape))
        except TypeError:
            raise TypeError(f"t: expected a shape of ints, got {shape!r}") from None
        if self.shape and min(self.shape) < 0:
            raise ValueError(f"t: expected a shape of lengths of at least 0, got {self.shape}")
        self.format.row_blocks(self.shape[-1] if self.shape else 0)

    def __str__(self):
        return f"{self.format.name} {self.shape}"


def _plan(n, matrices, activations, n_threads, device):
    shapes = tuple([each.shape for each in matrices])
    for shape in shapes:
        _check_sizes(n, shape)
    planner = devices.kernels("quant", device, "matmul.plan")
    plan = planner.plan_matmul(n, matrices[0].format, shapes, activations, n_threads, device)
    is_empty = n == 0 or shapes[0][-1] == 0 or not any(shape[-2] for shape in shapes)
    return NOTHING if is_empty else plan


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


def _checked_activations(exact, activations):
    exact = checks.flag(exact, "exact")
    if activations is not None:
        checks.choice(activations, "activations", ACTIVATIONS)
    if exact and activations not in (None, "float32"):
        raise ValueError(f"activations: exact=True is 'float32', got {activations!r}")
    return "float32" if exact else activations


def _matrices(t):
    """The tensors of `t`, one or a sequence of them."""
    if isinstance(t, QuantTensor):
        return (t,)
    if not isinstance(t, (tuple, list)) or not t:
        check_tensor(t)
    for each in t:
        check_tensor(each)
        _check_alike(t[0], each)
        if each.device != t[0].device:
            raise TypeError(f"t: lies on {t[0].device} and on {each.device}; bring all to one")
    return tuple(t)


def _checked_device(matrices, experts):
    """The device of tensors that fit."""
    t = matrices[0]
    if experts is None and t.ndim != 2:
        hint = "; a stack of matrices needs experts=" if t.ndim == 3 else ""
        raise ValueError(f"t: expected shape (rows, columns), got {t.shape}{hint}")
    if experts is not None and t.ndim != 3:
        raise ValueError(f"t: with experts= expected (n_expert, rows, columns), got {t.shape}")
    return devices.of_array(t.data, "t")


def _check_x(x, t, device):
    checks.check_array(x, "x", device, device.activations, "t")
    if x.ndim != 2 or x.shape[1] != t.columns:
        raise ValueError(
            f"x: expected (n, {t.columns}) for t of shape {t.shape}, got {x.shape}; "
            f"the product is x @ t.T"
        )
    checks.check_last_axis(x, "x")
    checks.check_alignment(x, "x", device)


def _checked_x_rows(x_rows, n_x, experts, device):
    """None, or an array of ints that are rows of x; on a device with streams nobody has looked at them."""
    if x_rows is None:
        return None
    checks.check_device(x_rows, "x_rows", device, "x")
    if x_rows.dtype.kind not in "iu":
        raise TypeError(f"x_rows: expected integers, got {x_rows.dtype}")
    if x_rows.ndim != 1:
        raise ValueError(f"x_rows: expected shape (n,), got {x_rows.shape}")
    if device.has_streams:
        if experts is None:
            raise ValueError(
                f"x_rows: on {device.name} with experts= only; lowlevel.ops.gather_rows makes those rows"
            )
        checks.check_vector(x_rows, "x_rows", device, ("int32",), len(x_rows))
        if not x_rows.flags.c_contiguous:
            raise ValueError("x_rows: expected an array without gaps")
        return x_rows
    lowest, highest = (int(x_rows.min()), int(x_rows.max())) if len(x_rows) else (0, -1)
    if lowest < 0 or highest >= n_x:
        bad = lowest if lowest < 0 else highest
        raise IndexError(f"x_rows: x has rows 0 to {n_x - 1}; got {bad}")
    return x_rows


def _checked_out(out, n, x, matrices, n_rows, device):
    if out is None:
        return None
    checks.check_array(out, "out", device, device.activations, "t")
    checks.check_shape(out, "out", (n, n_rows))
    checks.check_last_axis(out, "out")
    checks.check_alignment(out, "out", device)
    checks.check_writable(out, "out", device)
    for name, other in (("x", x), *(("t", t.data) for t in matrices)):
        checks.check_apart(out, "out", device, {name: other})
    return out


def _checked_experts(experts, n, t, device):
    """None, an array of int on the host with nothing but experts of t, or one on the GPU."""
    if experts is None:
        return None
    there = hasattr(experts, "dtype") and devices.of_array(experts, "experts")
    # To read what lies on a device with streams would make the host wait.
    stays = there is device and device.has_streams
    if stays:
        if experts.dtype.name not in ("int32", "int64"):
            raise TypeError(f"experts: expected int32 or int64, got {experts.dtype}")
    else:
        experts = arrays.asnumpy(experts, "experts") if there else np.asarray(experts)
    if experts.shape != (n,):
        raise ValueError(
            f"experts: expected shape ({n},), one index a row of x; got {experts.shape}"
        )
    if n == 0:
        return experts
    if experts.dtype.kind not in "iu":
        raise TypeError(f"experts: expected integers, got {experts.dtype}")
    if stays:
        checks.check_alignment(experts, "experts", device)
        return experts
    lowest, highest = int(experts.min()), int(experts.max())
    if lowest < 0 or highest >= t.shape[0]:
        bad = lowest if lowest < 0 else highest
        raise IndexError(f"experts: t has experts 0 to {t.shape[0] - 1}; got {bad}")
    return experts
