"""What an attention call will do, before it does it: tiles, steps and bytes. Pure arithmetic.

The same plan that is shown is the one that runs: `attention` takes exactly
``plan.scratch_bytes`` from the pool, block by block as in ``plan.scratch``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

from .. import checks, devices
from ..plans import shown, taken
from ..pool import BudgetError
from ..shapes import dtype_name
from ..sizes import format_size, parse_size
from .kv_source import KVType, kv_type_of, padded_width

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ..sizes import Size

METHODS = ("auto", "steps")
ASSEMBLIES = ("write", "concat")
PRECISIONS = ("float32", "bf16")
# Kernels count tokens, keys, heads and columns in 32 bits, and round some of them up to whole tiles.
MOST_OF_A_KIND = 2**31 - 64
# Keys decoded at a time where method "steps" meets K or V that are not float32.
STEP_CHUNK_KEYS = 512


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """How one attention call is cut up, and what it takes from the pool.

    Attributes
    ----------
    method : str
        "auto" or "steps".
    device : str
    n_head, n_head_kv, n_tokens, n_kv, d_k, d_v : int
        The call's sizes.
    path : str
        The kernels that run: on the CPU "panels", "panels bf16", "few rows float16" (K and V of that type
        are read where they lie) or "steps"; on a device "fused wgmma" (products of warpgroups; rows of K and V
        that the copy engine cannot read go by the next), "fused mma.sync", "fused few rows" or "tiles".
    precision : str
        "float32" or "bf16", as asked for; `path` tells what comes of it.
    q_dtype, out_dtype : str
        "float32", "float16", "bfloat16".
    kv_types : (KVType, KVType)
        Of K and V; `k_dtype` and `v_dtype` are their names.
    v_in_k : bool
        V is a range of K's columns and is not decoded a second time.
    kv_strided : bool
        Method "steps": BLAS cannot read K or V where they lie.
    assemble : str
        Method "steps": "write" (each step writes its part of the output) or "concat".
    budget : int or None
        Bytes allowed; None: no cap.
    heads, rows, keys : int
        One tile: query heads, tokens and keys whose scores are worked on together.
    packed_heads : int
        In fused kernels, query heads that share a K/V head in one tile of query rows; in a last pass of fewer heads,
        those. Elsewhere 0.
    stages : int
        In fused kernels, tiles of K in shared memory at a time; elsewhere 0.
    n_splits : int
        Parts into which a tile's keys are split among workers and merged afterwards.
    n_workers : int
        Workers that run at once, each with scratch of its own.
    pass_heads, pass_rows, pass_keys : int
        Where K or V are decoded a chunk at a time before the products (`KVType.in_chunks`): K/V heads,
        tokens and keys that are worked on together; elsewhere 0.
    n_steps : int
        K*Q tiles in all: ceil(n_head / heads) * ceil(n_tokens / rows) * ceil(n_kv / keys), heads
        counted within each group that shares a K/V head. For method "steps" the steps of the PR.
    kq_bytes : int
        Bytes that hold K*Q.
    scratch : tuple of (str, int)
        Tag and bytes of each block taken from the pool.
    scratch_bytes : int
        What the call takes from the pool in all, rounded as the pool rounds.
    """

    method: str
    device: str
    n_head: int
    n_head_kv: int
    n_tokens: int
    n_kv: int
    d_k: int
    d_v: int
    precision: str
    q_dtype: str
    kv_types: tuple[KVType, KVType]
    out_dtype: str
    v_in_k: bool
    kv_strided: bool
    assemble: str
    budget: int | None
    n_threads: int
    path: str
    heads: int
    rows: int
    keys: int
    n_splits: int
    n_workers: int
    n_steps: int
    scratch: tuple
    pass_heads: int = 0
    pass_rows: int = 0
    pass_keys: int = 0
    packed_heads: int = 0
    stages: int = 0

    @property
    def k_dtype(self) -> str:
        return self.kv_types[0].name

    @property
    def v_dtype(self) -> str:
        return self.kv_types[1].name

    @property
    def kq_bytes(self) -> int:
        return dict(self.scratch).get("kq", 0)

    @property
    def scratch_bytes(self) -> int:
        return taken(self.scratch)

    @functools.cached_property
    def sizes(self) -> dict[str, Any]:
        """The sizes that the call's arrays must have."""
        return {
            name: getattr(self, name)
            for name in (
                "n_head", "n_head_kv", "n_tokens", "n_kv", "d_k", "d_v", "precision",
                "q_dtype", "kv_types", "k_dtype", "v_dtype", "v_in_k", "kv_strided", "out_dtype", "device",
            )
        }  # fmt: skip

    @functools.cached_property
    def remembered(self) -> dict[Any, Any]:
        """What launchers have found out for the plan, so that calls alike need not again."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del data["kv_types"]
        data |= {"k_dtype": self.k_dtype, "v_dtype": self.v_dtype}
        data["scratch"] = shown(self.scratch)
        return {**data, "kq_bytes": self.kq_bytes, "scratch_bytes": self.scratch_bytes}


def plan_attention(
    *,
    n_head: int,
    n_head_kv: int | None = None,
    n_tokens: int,
    n_kv: int,
    d_k: int,
    d_v: int,
    budget: Size | None = None,
    kv_dtype: Any = "float32",
    q_dtype: DTypeLike = "float32",
    out_dtype: DTypeLike = "float32",
    method: str = "auto",
    assemble: str = "write",
    device: str = "cpu",
    n_threads: int | None = None,
    v_in_k: bool = False,
    kv_strided: bool = False,
    precision: str = "float32",
) -> AttentionPlan:
    """Plan an attention call: tile sizes and the exact bytes of scratch, without running it.

    Parameters
    ----------
    n_head : int
        Query heads.
    n_head_kv : int, optional
        K/V heads; must divide n_head. None: n_head.
    n_tokens, n_kv : int
        Query rows (n_ubatch) and keys (the context so far, these tokens included).
    d_k, d_v : int
        Head sizes of K (and Q) and of V.
    budget : int or str, optional
        Bytes the call may take, or text such as "256MiB" (`-amb 256`). None: no cap.
    kv_dtype : str or dtype or KVType, or pair of them
        Type of K and V, or (type of K, type of V): "float32", "float16", "bfloat16"; with `quant` imported
        also "Q8_0", ...; or the `type` of a `KVSource`.
    q_dtype, out_dtype : str or dtype
        "float32"; on "cuda:N" and "cudasim" also "float16" and "bfloat16".
    method : {"auto", "steps"}
        "auto": the tiles that run best, shrunk until they fit. "steps": ik_llama.cpp's -amb, whole
        K*Q of as many heads as fit (rounded down, never over).
    assemble : {"write", "concat"}
        Method "steps" only: each step writes its slice of the output, or step results are joined
        by repeated concats as the original does (for comparison).
    device : str
    n_threads : int, optional
        CPU threads; None: all this process may use. Workers are dropped before tiles shrink.
    v_in_k : bool
        V is a range of K's columns (latent MLA), so that one decoded chunk serves both.
    kv_strided : bool
        Method "steps": K or V are float32 in an order that BLAS cannot read in place (zero, negative
        or overlapping strides between keys, or not aligned), and are copied a chunk at a time.
    precision : {"float32", "bf16"}
        As for `attention`.

    Returns
    -------
    AttentionPlan

    Raises
    ------
    TypeError, ValueError
        An argument is not of its kind; the message names it and what would work.
    BudgetError
        The smallest tile (for "steps": one head) does not fit; names the smallest budget that does.
    """
    where = devices.get(device)
    arguments: Any = (
        n_head, n_head_kv, n_tokens, n_kv, d_k, d_v, budget, kv_dtype, q_dtype, out_dtype, method, assemble, device,
        v_in_k, kv_strided, precision, where.resolve_n_threads(n_threads), where.plan_limits,
    )  # fmt: skip
    try:
        return _checked_plan(*arguments)
    except TypeError:  # of the wrong kind, or one that cannot be looked up
        return _checked_plan.__wrapped__(*arguments)


@functools.lru_cache(maxsize=4096, typed=True)  # calls are of few sizes, plans of models of many
def _checked_plan(
    n_head, n_head_kv, n_tokens, n_kv, d_k, d_v, budget, kv_dtype, q_dtype, out_dtype, method, assemble, device,
    v_in_k, kv_strided, precision, n_threads, limits,
):  # fmt: skip
    """See `plan_attention`; `limits`: what plans of the device go by besides."""
    n_head = _count("n_head", n_head, 1)
    n_head_kv = n_head if n_head_kv is None else _count("n_head_kv", n_head_kv, 1)
    if n_head % n_head_kv:
        raise ValueError(
            f"n_head_kv: must divide n_head; {n_head_kv} does not divide {n_head}, "
            f"for example {_largest_divisor(n_head, n_head_kv)} does"
        )
    checks.choice(method, "method", METHODS)
    checks.choice(assemble, "assemble", ASSEMBLIES)
    if assemble != "write" and method != "steps":
        raise ValueError(f'assemble={assemble!r} is for method="steps"; got method={method!r}')
    d_k, d_v = _count("d_k", d_k, 1), _count("d_v", d_v, 1)
    k_type, v_type = kv_types = _kv_types(kv_dtype)
    checks.choice(precision, "precision", PRECISIONS)
    where, device = devices.get(device), devices.canonical_name(device)
    planner = where.planner
    if method not in planner.METHODS:
        raise ValueError(f"method: expected one of {planner.METHODS} on {device}, got {method!r}")
    if precision not in planner.PRECISIONS:
        raise ValueError(
            f'precision: "bf16" is for the CPU; on {device} give q, k and v as bfloat16'
        )
    if precision == "bf16" and method != "auto":
        raise ValueError('precision: "bf16" needs method "auto"')
    for name, dtype in (("q_dtype", q_dtype), ("out_dtype", out_dtype)):
        if dtype_name(dtype, name) not in where.activations:
            known = where.activations
            raise ValueError(f"{name}: expected one of {known} on {device}, got {dtype!r}")
    _check_kv_types(k_type, v_type, d_k, d_v, v_in_k)
    sizes = dict(
        device=device,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_tokens=_count("n_tokens", n_tokens, 0),
        n_kv=_count("n_kv", n_kv, 0),
        d_k=d_k,
        d_v=d_v,
        precision=precision,
        q_dtype=dtype_name(q_dtype),
        kv_types=kv_types,
        k_dtype=k_type.name,
        v_dtype=v_type.name,
        out_dtype=dtype_name(out_dtype),
        v_in_k=bool(v_in_k),
        kv_strided=bool(kv_strided) and method == "steps",
        method=method,
        assemble=assemble,
        budget=None if budget is None else parse_size(budget),
        n_threads=n_threads,
    )
    if sizes["n_tokens"] == 0:
        # Nothing to compute, and nothing to take.
        nothing = dict(heads=n_head, rows=1, keys=1, n_splits=1, n_workers=1, n_steps=0, scratch=())
        return _as_plan(sizes, path="nothing", **nothing)
    return _plan(tuple(sizes.items()), limits)


def _as_plan(sizes, **decided):
    names = {name: value for name, value in sizes.items() if name not in ("k_dtype", "v_dtype")}
    return AttentionPlan(**names, **decided)


@functools.lru_cache(maxsize=256)
def _plan(items, limits):
    """The plan for checked sizes; `limits`: what it goes by besides, of the device."""
    sizes = dict(items)
    return _plan_steps(sizes) if sizes["method"] == "steps" else _plan_tiles(sizes)


# ---------------------------------------------------------------- method "auto"


def _plan_tiles(sizes):
    """The first of the device's tiles that fits, with as many workers as fit beside it."""
    planner = devices.get(sizes["device"]).planner
    smallest = None
    for tile in planner.candidate_tiles(sizes):
        n_tiles = planner.count_tiles(sizes, tile)
        at_once = planner.tiles_at_once(sizes, tile)
        most_workers = max(1, min(sizes["n_threads"], at_once * tile.splits))
        fixed, per_worker = planner.scratch_parts(sizes, tile)

        def blocks(n_workers, fixed=fixed, per_worker=per_worker):
            return tuple((tag, n * n_workers) for tag, n in per_worker) + fixed

        n_workers = _most_that_fit(blocks, most_workers, sizes["budget"])
        if n_workers >= min(tile.least_workers, most_workers):
            return _as_plan(
                sizes,
                **planner.decided(sizes, tile),
                heads=tile.heads,
                rows=tile.rows,
                keys=tile.keys,
                n_splits=tile.splits,
                n_workers=n_workers,
                n_steps=n_tiles * -(-sizes["n_kv"] // tile.keys),
                scratch=blocks(n_workers),
            )
        needed = taken(blocks(1))
        smallest = needed if smallest is None else min(smallest, needed)
    raise _too_small(sizes, smallest, "the smallest tile")


def _most_that_fit(blocks, most, budget):
    """The largest n <= most for which ``blocks(n)`` fits `budget`; 0 if not even 1 does."""
    if budget is None:
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if taken(blocks(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


# ---------------------------------------------------------------- method "steps"


def _plan_steps(sizes):
    """Whole K*Q of floor(budget / bytes per head) heads: the PR's steps, never over."""
    head_bytes = 4 * sizes["n_tokens"] * sizes["n_kv"]
    fixed = _step_conversion(sizes) + _step_concat(sizes)

    def blocks(heads):
        return (("kq", heads * head_bytes), *fixed)

    heads = _most_that_fit(blocks, sizes["n_head"], sizes["budget"])
    if not heads:
        needed = taken(blocks(1))
        raise _too_small(sizes, needed, 'one head of method="steps"')
    return _as_plan(
        sizes,
        path="steps",
        heads=heads,
        rows=sizes["n_tokens"],
        keys=max(sizes["n_kv"], 1),
        n_splits=1,
        n_workers=1,
        n_steps=-(-sizes["n_head"] // heads) if sizes["n_kv"] else 0,
        scratch=tuple((tag, n) for tag, n in blocks(heads) if n),
    )


def _step_conversion(sizes):
    """K or V that BLAS cannot read are decoded a chunk at a time, V's products added up."""
    if sizes["k_dtype"] == sizes["v_dtype"] == "float32" and not sizes["kv_strided"]:
        return ()
    keys = min(STEP_CHUNK_KEYS, sizes["n_kv"])
    own = max(kind.scratch_bytes(sizes["device"], 1, keys) for kind in sizes["kv_types"])
    return (
        ("kv chunk", 4 * keys * step_chunk_stride(sizes["kv_types"], sizes["d_k"], sizes["d_v"])),
        ("kqv part", 4 * sizes["n_tokens"] * sizes["d_v"]),
        ("decode", own),
    )


def step_chunk_stride(kv_types: tuple[KVType, KVType], d_k: int, d_v: int) -> int:
    """From one key of a decoded chunk to the next, in floats."""
    width = max(d_k, d_v)
    if any(kind.in_chunks for kind in kv_types):
        return padded_width(width)
    return width


def _step_concat(sizes):
    """A step's result, the heads joined so far, and the buffer they are joined into."""
    if sizes["assemble"] != "concat":
        return ()
    whole = 4 * sizes["n_head"] * sizes["n_tokens"] * sizes["d_v"]
    return (("step result", whole), ("joined", whole), ("joined next", whole))


# ---------------------------------------------------------------- checks


def _too_small(sizes, needed, what):
    budget = sizes["budget"]
    shape = (
        f"n_head={sizes['n_head']}, n_tokens={sizes['n_tokens']}, n_kv={sizes['n_kv']}, "
        f"d_k={sizes['d_k']}, d_v={sizes['d_v']}"
    )
    remedy = f"give a budget of at least {needed} bytes ({format_size(needed)})"
    if sizes["method"] == "steps":
        remedy += ', or method="auto", which splits a head'
    return BudgetError(
        f"budget: {budget} bytes ({format_size(budget)}) are too few for {what} ({shape}): {remedy}",
        requested=needed,
        budget=budget,
        smallest_budget=needed,
        remedy=remedy,
    )


def is_genuine(plan: AttentionPlan) -> bool:
    """Whether `plan` is what `plan_attention` makes of its sizes and budget, unchanged since."""
    try:
        return _is_made_anew(plan)
    except TypeError:  # a list or the like in a field: no plan of ours can fail to hash
        return False


@functools.lru_cache(maxsize=256)
def _is_made_anew(plan):
    sizes = dict(plan.sizes)
    del sizes["k_dtype"], sizes["v_dtype"]
    kv_dtype = sizes.pop("kv_types")
    choices = {name: getattr(plan, name) for name in ("method", "assemble", "budget", "n_threads")}
    try:
        return plan_attention(**sizes, kv_dtype=kv_dtype, **choices) == plan
    except (TypeError, ValueError, BudgetError):
        return False


def _count(name, value, least):
    return checks.whole_number(value, name, least, MOST_OF_A_KIND)


def _largest_divisor(n, at_most):
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return max(d for d in (*small, *(n // d for d in small)) if d <= at_most)


def _kv_types(kv_dtype):
    pair = kv_dtype if isinstance(kv_dtype, (tuple, list)) else (kv_dtype, kv_dtype)
    if len(pair) != 2:
        raise ValueError(f"kv_dtype: expected one type or (type of K, type of V), got {kv_dtype!r}")
    return tuple(kv_type_of(kind) for kind in pair)


def _check_kv_types(k_type, v_type, d_k, d_v, v_in_k):
    for argument, width, kind in (("d_k", d_k, k_type), ("d_v", d_v, v_type)):
        if width % kind.block_weights:
            raise ValueError(
                f"{argument}: must be a multiple of {kind.block_weights}, the weights in a block of "
                f"{kind.name}; got {width}"
            )
    if v_in_k and (k_type != v_type or d_v > d_k or k_type.in_chunks):
        raise ValueError(
            f"v_in_k: V can be a range of K's columns only with K's type and at most its {d_k} "
            f"columns; got {v_type.name} in {k_type.name}, d_v={d_v}"
        )
