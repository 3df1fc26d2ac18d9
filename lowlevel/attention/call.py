"""Attention inside a memory budget: the public call and its checks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import checks, devices
from ..arrays import asnumpy
from ..pool import Pool
from ..pool.arena import smallest_size
from ..pool.budget_error import BudgetError, exact_size, refusal
from ..shapes import dtype_name
from .kv_source import as_kv_source
from .plan import MOST_OF_A_KIND, PRECISIONS, AttentionPlan, is_genuine, plan_attention

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..arrays import Array
    from .kv_source import KVSource

# A call plans for what is free; so often it plans anew if other threads were faster to take it.
PLANS_UNDER_CONTENTION = 100


class Operands(NamedTuple):
    """Checked operands of one call, as backends take them.

    q, out: (n_head, n_tokens, d) with contiguous last axis; lse: (n_head, n_tokens) or None;
    k, v: KV sources; v_column: V's first column in K where the plan says v_in_k; mask: view of shape
    (1 or n_head, n_tokens, n_kv), or None; alibi_slopes, sinks: (n_head,) float32 arrays, of NumPy or of the
    device, or None; n_kv: int32 array of the device, or None.
    """

    q: Any
    k: Any
    v: Any
    out: Any
    lse: Any
    v_column: int
    mask: Any
    alibi_slopes: Any
    sinks: Any
    causal: bool
    window: int | None
    scale: float
    softcap: float | None
    precision: str = "float32"
    n_kv: Any = None


def attention(
    q: Array,
    k: Array | KVSource,
    v: Array | KVSource,
    *,
    pool: Pool | None = None,
    scale: float | None = None,
    causal: bool = True,
    mask: Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    n_kv: Array | None = None,
    out: Array | None = None,
    method: str = "auto",
    assemble: str = "write",
    plan: AttentionPlan | None = None,
    n_threads: int | None = None,
    return_lse: bool = False,
    lse: Array | None = None,
    precision: str = "float32",
) -> Array:
    """Attention of `q` over `k` and `v`, its scratch taken from `pool` and never more.

    For query head h at position p and key position c of K/V head ``h // (n_head / n_head_kv)``::

        s = scale * q.k
        s = softcap * tanh(s / softcap)         if softcap
        s = s + mask                            if mask
        s = s - alibi_slopes[h] * |p - c|       if alibi_slopes

    then keys with c > p (causal) or c <= p - window are left out, and the output is
    ``sum(softmax(s) * v)``. Query row i sits at position ``n_kv - n_tokens + i``. A row with nothing
    to attend to gives 0. Keys left out (also by a mask of -inf) contribute nothing even where their
    K or V holds NaN or inf.

    Parameters
    ----------
    q : array, float32, (n_head, n_tokens, d_k)
        Any strides with a contiguous last axis. NumPy arrays are worked on by the CPU, CuPy arrays
        and those of the simulator (`lowlevel.asarray`) by their device; all arrays of a call lie on
        one. On a device also float16 and bfloat16: with head sizes 64/64, 128/128, 192/128 or (V in
        K) 576/512, K and V of q's type or quantised, and `out` of q's type or float32, these take
        the fused kernels; anything else goes by tiles of float32 scores, which is several times
        slower.
    k, v : numpy.ndarray or QuantTensor, (n_head_kv, n_kv, d_k) and (n_head_kv, n_kv, d_v)
        float32, float16 or bfloat16 in any strides (zero strides too) with a contiguous last axis,
        or quantised in 32-weight blocks (Q8_0, Q4_0, IQ4_NL). They are decoded a chunk of keys at a
        time. If V is a range of K's columns in the same memory (latent MLA), chunks are shared.
    pool : Pool, optional
        Where scratch comes from; its largest free block is the budget. None: a private pool of
        just the bytes that the best plan needs.
    scale : float, optional
        None: 1 / sqrt(d_k).
    causal : bool
        Leave out keys after the query's position.
    mask : numpy.ndarray, float32, (n_tokens, n_kv) or (n_head, n_tokens, n_kv), optional
        Added to the scores; any strides.
    window : int, optional
        Sliding window: a query sees the last `window` positions up to its own.
    softcap : float, optional
    alibi_slopes, sinks : array_like of n_head floats, optional
        A sink is one more logit of its head in the maximum and the sum, without a value. A contiguous float32
        array on the device of q stays there, and nobody looks whether it is finite.
    n_kv : array of int32, (1,), optional
        On the device of q: how many keys there are, the first of k and v, read by the kernels when they run. For
        calls in a CUDA graph, which is launched again while a cache grows: k and v are the whole cache, query row i
        sits at ``n_kv - n_tokens + i``, and what lies behind is not used, whatever it holds. On devices only, where
        a K/V head has at most 64 query rows or V lies in K, in the fused kernels, K and V not quantised.
    out : array, float32, (n_head, n_tokens, d_v), optional
        Written and returned; on a device also float16 or bfloat16; None: a new one of q's type.
        Any strides with a contiguous last axis, for example
        ``np.empty((n_tokens, n_head, d_v), "f4").transpose(1, 0, 2)``.
    method : {"auto", "steps"}
        "auto": the best tiles. "steps": whole K*Q of some heads at a time, as ik_llama.cpp -amb.
    assemble : {"write", "concat"}
        For method "steps": see `plan_attention`.
    plan : AttentionPlan, optional
        What `plan_attention` returned for exactly these sizes; `method`, `assemble` and `n_threads`
        are the plan's then, and may be left out.
    n_threads : int, optional
        None: every CPU this process may use.
    return_lse : bool
        Also return log(sum(exp(s))) of each row, sink included: (n_head, n_tokens) float32, -inf
        for a row with nothing to attend to. See `merge_states`. It errs by at most 5e-6 of the larger
        of 1 and its largest magnitude, for scores of standard deviation up to 3 (with operands of 16
        bits 2e-3, of bfloat16 4e-3).
    lse : array, float32, (n_head, n_tokens), optional
        Where they go, as with `return_lse`: rows of any stride with a contiguous last axis.
    precision : {"float32", "bf16"}
        "bf16": on CPUs with AVX512_BF16 queries, K, V and softmax weights are rounded to bfloat16 for
        the two products (scores, sums and the output stay float32), which takes about 0.6 of the
        time. Where K, V or q reach beyond bfloat16's 3.39e38 they become infinite. For normally
        distributed operands the error is 0.3 % of the output's root mean square, at most 1 % of its
        largest value; with operands that are bfloat16 already, at most 2**-8 of the weighted sum
        over abs(v). Up to 16 query rows a K/V head, where memory is the limit, and on other CPUs it
        is float32. For method "auto"; V inside K's columns is decoded apart (plan without v_in_k).

    Returns
    -------
    numpy.ndarray or (numpy.ndarray, numpy.ndarray)

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; it is named, with what was given and what would work.
    BudgetError
        The smallest tile does not fit the pool. Nothing has been written or taken.

    Notes
    -----
    Softmax is computed online in float32 (Milakov and Gimelshein, arXiv:1805.02867), and outputs
    are rescaled only when a row's maximum moves. Scores, masks and sinks may be as large as float32
    holds. A row whose largest score is past that is NaN; a key whose score is below it is left out.

    Any number of threads may call this at once, also on one pool: each call plans for what the
    others have left, and is refused where that holds no tile. Give each its own pool for its own share.

    On a GPU, the first call of a kind loads kernels (2 MiB a process and shape, on an H100); beside that and
    a new `out`, nothing is taken outside the pool: matrix products have their workspace in it too.
    """
    device = devices.of_array(q, "q")
    n_head, n_tokens, d_k = _check_q(q, device)
    k_source, v_source = as_kv_source(k, "k"), as_kv_source(v, "v")
    n_head_kv, n_keys, d_v = _check_kv(n_head, d_k, k_source, v_source)
    out_shape = (n_head, n_tokens, d_v)
    if out is not None:
        _check_out(out, out_shape, device)
    checks.check_pool(pool, device)
    _check_place(device, {"k": k_source.arrays, "v": v_source.arrays}, plan)
    operands = Operands(
        q=q,
        k=k_source,
        v=v_source,
        out=out,
        lse=None,
        v_column=_column_of_v(k_source, v_source, device),
        mask=_check_mask(mask, n_head, n_tokens, n_keys, device),
        alibi_slopes=_check_per_head(alibi_slopes, "alibi_slopes", n_head, device),
        sinks=_check_per_head(sinks, "sinks", n_head, device),
        n_kv=n_kv,
        causal=checks.flag(causal, "causal"),
        window=None if window is None else checks.whole_number(window, "window", 1),
        scale=1 / math.sqrt(d_k) if scale is None else checks.real_number(scale, "scale"),
        softcap=None
        if softcap is None
        else checks.real_number(softcap, "softcap", checks.LEAST_POSITIVE),
        precision=_check_precision(precision, plan),
    )
    if n_kv is not None:
        checks.check_vector(n_kv, "n_kv", device, ("int32",), 1)
    if out is not None:
        _check_overlap(operands, device)
    if lse is not None:
        _check_lse(lse, out_shape[:2], device)
        return_lse = True
    out_dtype = q.dtype if out is None else out.dtype
    sizes = dict(
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_tokens=n_tokens,
        n_kv=n_keys,
        d_k=d_k,
        d_v=d_v,
        kv_dtype=(k_source.type, v_source.type),
        q_dtype=dtype_name(q.dtype),
        out_dtype=dtype_name(out_dtype),
        v_in_k=operands.v_column >= 0 and operands.precision == "float32",
        kv_strided=not (_blas_reads(k_source, device) and _blas_reads(v_source, device)),
        device=device.name,
        precision=operands.precision,
    )
    if plan is not None:
        _check_plan(plan, sizes, method, assemble, n_threads)

    def make_plan(budget):
        if plan is not None:
            return plan
        return plan_attention(
            **sizes, method=method, assemble=assemble, n_threads=n_threads, budget=budget
        )

    def compute(plan, blocks):
        nonlocal operands
        if n_kv is not None and not device.planner.counts_keys(plan.sizes):
            raise ValueError(_NOT_COUNTED)
        # Outputs are made after everything that can be refused was accepted.
        if out is None:
            operands = operands._replace(out=device.empty(out_shape, out_dtype))
        if return_lse:
            made = device.empty(out_shape[:2], np.dtype(np.float32)) if lse is None else lse
            operands = operands._replace(lse=made)
        if n_tokens:
            device.attention.run(plan, operands, blocks)

    if pool is None:
        own = make_plan(None)
        with Pool(own.scratch_bytes, device=own.device) as pool:
            _in_scratch(pool, own, compute)
    else:
        attempts = PLANS_UNDER_CONTENTION if plan is None else 1
        _in_free_scratch(pool, make_plan, attempts, compute)
    return (operands.out, operands.lse) if return_lse else operands.out


def _in_free_scratch(pool, make_plan, attempts, compute):
    """``compute(plan, blocks)`` by a plan for what is free in `pool`."""
    for left in reversed(range(attempts)):
        # Blocks whose rounded sizes add up to the largest hole always fit, however fragmented the
        # rest, unless another thread takes from it between this line and the next.
        free = pool.largest_free
        try:
            plan = make_plan(free)
        except BudgetError as error:
            raise (_refusal(error, pool) if pool.used else error) from None
        if _in_scratch(pool, plan, compute, may_miss=left > 0):
            return


def _in_scratch(pool, plan, compute, may_miss=False):
    """``compute(plan, {tag: array of float32})`` with the plan's blocks; False: `pool` had not all of them.

    Whatever happens meanwhile, an interrupt too: the scope gives the blocks back.
    """
    is_taken = False
    sizes = dict(n_head=plan.n_head, n_tokens=plan.n_tokens, n_kv=plan.n_kv, method=plan.method)
    call = pool.call("attention", **sizes, scratch_bytes=plan.scratch_bytes)  # marks it in a trace
    try:
        with call, pool.scope("attention"):
            blocks = {tag: pool.empty(n // 4, "float32", tag=tag) for tag, n in plan.scratch}
            is_taken = True
            compute(plan, blocks)
    except BudgetError:
        if is_taken or not may_miss:
            raise
    return is_taken


def _refusal(error, pool):
    """What a plan refused for lack of budget, where blocks in the pool are what lacks: who holds them."""
    state = pool.snapshot()
    names = ("budget", "used", "largest_free", "fragmentation", "holders")
    needed = error.requested  # in whole blocks, as plans count
    smallest = smallest_size(needed, [(b["offset"], b["n_bytes"]) for b in state["live"]])
    return refusal(
        "the smallest scratch of this attention call",
        requested=error.requested,
        rounded=needed,
        smallest_budget=smallest,
        remedy=f"it needs {exact_size(needed)} free in one piece: free some of the above, or take a "
        f"pool of {exact_size(smallest)}, which would hold it with the present blocks where they are",
        **{name: state[name] for name in names},
    )


# ---------------------------------------------------------------- checks


def _check_place(device, sources, plan):
    """Raise unless K, V and the plan belong to q's device."""
    for name, arrays in sources.items():
        for array in arrays:
            checks.check_device(array, name, device, "q")
            if device.planner.KV_ALIGNED:
                checks.check_alignment(array, name, device)
    if plan is not None and getattr(plan, "device", device.name) != device.name:
        raise ValueError(f"plan: made for {plan.device}, but q is on {device.name}")


def _check_q(q, device):
    if q.ndim != 3 or q.shape[0] == 0 or q.shape[2] == 0:
        raise ValueError(
            f"q: expected shape (n_head, n_tokens, d_k) with n_head and d_k at least 1, got {q.shape}"
        )
    checks.check_dtype(q, "q", device, device.activations)
    checks.check_alignment(q, "q", device)
    checks.check_last_axis(q, "q")
    return q.shape


def _check_kv(n_head, d_k, k, v):
    if len(k.shape) != 3 or k.shape[0] == 0 or n_head % k.shape[0] or k.shape[2] != d_k:
        raise ValueError(
            f"k: expected shape (n_head_kv, n_kv, {d_k}) with n_head_kv a divisor of q's {n_head} "
            f"heads, got {k.shape}"
        )
    if len(v.shape) != 3 or v.shape[:2] != k.shape[:2] or v.shape[2] == 0:
        raise ValueError(
            f"v: expected shape ({k.shape[0]}, {k.shape[1]}, d_v) like k's {k.shape}, got {v.shape}"
        )
    if k.shape[1] > MOST_OF_A_KIND:  # said here of k, before it is planned for
        raise ValueError(f"k: at most {MOST_OF_A_KIND} keys are supported, got {k.shape[1]}")
    return k.shape[0], k.shape[1], v.shape[2]


def _check_out(out, shape, device):
    checks.check_array(out, "out", device, device.activations, "q")
    checks.check_shape(out, "out", shape)
    checks.check_alignment(out, "out", device)
    checks.check_last_axis(out, "out")
    checks.check_writable(out, "out", device)


def _check_lse(lse, shape, device):
    checks.check_array(lse, "lse", device, ("float32",), "q")
    checks.check_shape(lse, "lse", shape)
    checks.check_last_axis(lse, "lse")
    checks.check_writable(lse, "lse", device)


def _check_overlap(operands, device):
    inputs = [("q", operands.q), ("mask", operands.mask)]
    inputs += [(name, x) for name in "kv" for x in getattr(operands, name).arrays]
    for name, array in inputs:
        checks.check_apart(operands.out, "out", device, {name: array})


def _check_mask(mask, n_head, n_tokens, n_kv, device):
    """`mask` as three axes, the first of 1 or n_head."""
    if mask is None:
        return None
    checks.check_array(mask, "mask", device, ("float32",), "q")
    if mask.shape not in ((n_tokens, n_kv), (n_head, n_tokens, n_kv)):
        works = f"({n_tokens}, {n_kv}) or ({n_head}, {n_tokens}, {n_kv})"
        raise ValueError(f"mask: expected shape {works}, got {mask.shape}")
    checks.check_alignment(mask, "mask", device)
    return mask if mask.ndim == 3 else mask[None]


_NOT_COUNTED = (
    "n_kv: read by kernels of a GPU, where they are fused (float16, bfloat16), K and V are not quantised and a K/V head "
    "has at most 64 query rows or V lies in K; leave it out and give k[:, :n_kv] and v[:, :n_kv]"
)


def _check_per_head(values, name, n_head, device):
    if values is None:
        return None
    if _stays_there(values, device):
        checks.check_vector(values, name, device, ("float32",), n_head)
        return values
    given = np.asarray(asnumpy(values, name))
    if given.dtype.kind not in "fiu" and dtype_name(given.dtype) != "bfloat16":
        raise TypeError(f"{name}: expected {n_head} real numbers, one per head, got {values!r}")
    if given.shape != (n_head,):
        raise ValueError(f"{name}: expected {n_head} values, one per head, got shape {given.shape}")
    with np.errstate(over="ignore"):
        array = np.array(given, np.float32)  # a copy: `out` may lie over what was given
    allowed = np.isfinite(array)
    if name == "sinks":
        allowed |= np.isneginf(array)  # a head without a sink
    if not allowed.all():
        raise ValueError(f"{name}: expected values that are finite in float32, got {given}")
    return array


def _stays_there(values, device):
    """Whether they are an array that kernels of a device can read: bringing it to the host would wait for the GPU."""
    return (
        device.has_streams
        and device.address(values) is not None
        and dtype_name(values.dtype) == "float32"
        and (values.ndim != 1 or len(values) < 2 or values.strides[0] == 4)
    )


def _check_precision(precision, plan):
    if checks.choice(precision, "precision", PRECISIONS) == "float32" and plan is not None:
        return getattr(plan, "precision", precision)  # left as it is by default, it is the plan's
    return precision


def _check_plan(plan, sizes, method, assemble, n_threads):
    if not isinstance(plan, AttentionPlan):
        raise TypeError(f"plan: expected what plan_attention returns, got {type(plan).__name__}")
    actual = {**sizes, "kv_types": sizes["kv_dtype"]}
    del actual["kv_dtype"]
    actual["kv_strided"] &= plan.method == "steps"
    # Arguments left as they are by default are the plan's.
    defaults = dict(method="auto", assemble="write", n_threads=None)
    for name, value in dict(method=method, assemble=assemble, n_threads=n_threads).items():
        if value != defaults[name]:
            actual[name] = value
    differing = [
        f"{name} {_shown(getattr(plan, name))} (the call has {_shown(value)})"
        for name, value in actual.items()
        if getattr(plan, name) != value
    ]
    if differing:
        raise ValueError(f"plan: made for another call: {', '.join(differing)}")
    if not is_genuine(plan):
        raise ValueError(
            "plan: changed since plan_attention returned it (its tiles and its scratch must fit each "
            "other); plan again with other sizes, budget or n_threads"
        )


def _shown(value):
    """A plan's value in an error: types by their names."""
    return "/".join(kind.name for kind in value) if isinstance(value, tuple) else value


def _blas_reads(source, device):
    """Whether BLAS can read a source's floats where they lie; NumPy would copy a whole head of them."""
    if source.type.in_chunks:
        return True  # what it is decoded to
    data = source.data
    if any(n % data.itemsize for n in (device.address(data), *data.strides)):
        return data.size == 0
    row = data.strides[1] // data.itemsize
    return source.shape[1] <= 1 or data.shape[2] <= row < 2**31


def _column_of_v(k, v, device):
    """V's first column inside K's rows if V is a range of K's columns in memory, else -1."""
    if k.type != v.type or k.type.in_chunks:
        return -1
    if k.data.strides[:2] != v.data.strides[:2] or v.shape[2] > k.shape[2] or 0 in k.data.shape:
        return -1
    start = device.address(v.data) - device.address(k.data)
    row_bytes = k.data.shape[2] * k.data.itemsize
    column, odd = divmod(start * k.shape[2], row_bytes)
    if odd or column % k.type.block_weights or not 0 <= column <= k.shape[2] - v.shape[2]:
        return -1
    if column % device.planner.V_COLUMN_STEP:
        return -1
    return column
