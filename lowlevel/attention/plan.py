"""What an attention call will do, before it does it: tiles, steps and bytes. Pure arithmetic.

The same plan that is shown is the one that runs: `attention` takes exactly
``plan.scratch_bytes`` from the pool, block by block as in ``plan.scratch``.
"""

import dataclasses
import functools
import math
import numbers

from .. import devices
from ..pool import ALIGNMENT, BudgetError
from ..sizes import format_size, parse_size

METHODS = ("auto", "steps")
ASSEMBLIES = ("write", "concat")
DENSE_DTYPES = ("float32", "float16", "bfloat16")
# Weights in one block of every type that K and V may have; a head's size is a multiple of it.
# `quant` brings the sources of the quantised ones; a source of another type adds its row.
KV_BLOCK_WEIGHTS = {**dict.fromkeys(DENSE_DTYPES, 1), "Q8_0": 32, "Q4_0": 32, "IQ4_NL": 32}
# Kernels count tokens, keys, heads and columns in 32 bits, and round some of them up to whole tiles.
MOST_OF_A_KIND = 2**31 - 64
# Keys decoded at a time where method "steps" meets K or V that are not float32.
STEP_CHUNK_KEYS = 512
_SHORT_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def block_bytes(n_bytes):
    """Bytes a pool takes for a request of `n_bytes`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


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
    q_dtype, k_dtype, v_dtype, out_dtype : str
        "float32", "float16", "bfloat16"; K and V also the name of a quantised type.
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
    n_splits : int
        Parts into which a tile's keys are split among workers and merged afterwards.
    n_workers : int
        Workers that run at once, each with scratch of its own.
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
    q_dtype: str
    k_dtype: str
    v_dtype: str
    out_dtype: str
    v_in_k: bool
    kv_strided: bool
    assemble: str
    budget: int | None
    n_threads: int
    heads: int
    rows: int
    keys: int
    n_splits: int
    n_workers: int
    n_steps: int
    scratch: tuple

    @property
    def kq_bytes(self):
        return dict(self.scratch).get("kq", 0)

    @property
    def scratch_bytes(self):
        return sum(block_bytes(n) for _, n in self.scratch)

    @functools.cached_property
    def sizes(self):
        """The sizes that the call's arrays must have."""
        return {
            name: getattr(self, name)
            for name in (
                "n_head", "n_head_kv", "n_tokens", "n_kv", "d_k", "d_v",
                "q_dtype", "k_dtype", "v_dtype", "v_in_k", "kv_strided", "out_dtype", "device",
            )
        }  # fmt: skip

    def tiles(self):
        """Yield each tile as (head slice, token slice, key slice), in no promised order."""
        group = self.n_head // max(self.n_head_kv, 1)
        # Method "steps" does not mind where one K/V head's group ends.
        whole_groups = self.method != "auto" or self.heads > group
        bounds = (0,) if whole_groups else range(0, self.n_head, group)
        size = self.n_head if whole_groups else group
        for first in bounds:
            for head in range(first, first + size, self.heads):
                head_slice = slice(head, min(head + self.heads, first + size))
                for row in range(0, self.n_tokens, self.rows):
                    row_slice = slice(row, min(row + self.rows, self.n_tokens))
                    for key in range(0, self.n_kv, self.keys):
                        yield head_slice, row_slice, slice(key, min(key + self.keys, self.n_kv))

    def to_dict(self):
        """Plain data, for JSON."""
        data = dataclasses.asdict(self)
        data["scratch"] = [{"tag": tag, "bytes": n} for tag, n in self.scratch]
        return {**data, "kq_bytes": self.kq_bytes, "scratch_bytes": self.scratch_bytes}


def plan_attention(
    *,
    n_head,
    n_head_kv=None,
    n_tokens,
    n_kv,
    d_k,
    d_v,
    budget=None,
    kv_dtype="float32",
    q_dtype="float32",
    out_dtype="float32",
    method="auto",
    assemble="write",
    device="cpu",
    n_threads=None,
    v_in_k=False,
    kv_strided=False,
):
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
    kv_dtype : str or dtype or pair of them
        Type of K and V, or (type of K, type of V): "float32", "float16", "bfloat16", "Q8_0", ...
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
    n_head = _count("n_head", n_head, 1)
    n_head_kv = n_head if n_head_kv is None else _count("n_head_kv", n_head_kv, 1)
    if n_head % n_head_kv:
        raise ValueError(
            f"n_head_kv: must divide n_head; {n_head_kv} does not divide {n_head}, "
            f"for example {_largest_divisor(n_head, n_head_kv)} does"
        )
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    if assemble not in ASSEMBLIES:
        raise ValueError(f"assemble: expected one of {ASSEMBLIES}, got {assemble!r}")
    if assemble != "write" and method != "steps":
        raise ValueError(f'assemble={assemble!r} is for method="steps"; got method={method!r}')
    d_k, d_v = _count("d_k", d_k, 1), _count("d_v", d_v, 1)
    k_dtype, v_dtype = _kv_dtypes(kv_dtype)
    planner, device = devices.get(device).planner, devices.canonical_name(device)
    if method not in planner.METHODS:
        raise ValueError(f"method: expected one of {planner.METHODS} on {device}, got {method!r}")
    for name, dtype, known in (
        ("q_dtype", q_dtype, planner.Q_DTYPES),
        ("out_dtype", out_dtype, planner.OUT_DTYPES),
    ):
        if dtype_name(dtype, name) not in known:
            raise ValueError(f"{name}: expected one of {known} on {device}, got {dtype!r}")
    _check_kv_types(k_dtype, v_dtype, d_k, d_v, v_in_k)
    sizes = dict(
        device=device,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_tokens=_count("n_tokens", n_tokens, 0),
        n_kv=_count("n_kv", n_kv, 0),
        d_k=d_k,
        d_v=d_v,
        q_dtype=dtype_name(q_dtype),
        k_dtype=k_dtype,
        v_dtype=v_dtype,
        out_dtype=dtype_name(out_dtype),
        v_in_k=bool(v_in_k),
        kv_strided=bool(kv_strided) and method == "steps",
        method=method,
        assemble=assemble,
        budget=None if budget is None else parse_size(budget),
        n_threads=devices.get(device).resolve_n_threads(n_threads),
    )
    if sizes["n_tokens"] == 0:
        # Nothing to compute, and nothing to take.
        return AttentionPlan(
            **sizes, heads=n_head, rows=1, keys=1, n_splits=1, n_workers=1, n_steps=0, scratch=()
        )
    return _plan(tuple(sizes.items()), devices.get(device).plan_limits)


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
        most_workers = max(1, min(sizes["n_threads"], n_tiles * tile.splits))
        fixed, per_worker = planner.scratch_parts(sizes, tile)

        def blocks(n_workers, fixed=fixed, per_worker=per_worker):
            return tuple((tag, n * n_workers) for tag, n in per_worker) + fixed

        n_workers = _most_that_fit(blocks, most_workers, sizes["budget"])
        if n_workers:
            n_steps = n_tiles * -(-sizes["n_kv"] // tile.keys)
            return _tile_plan(sizes, tile, n_workers, n_steps, blocks(n_workers))
        needed = sum(block_bytes(n) for _, n in blocks(1))
        smallest = needed if smallest is None else min(smallest, needed)
    raise _too_small(sizes, smallest, "the smallest tile")


def _most_that_fit(blocks, most, budget):
    """The largest n <= most for which ``blocks(n)`` fits `budget`; 0 if not even 1 does."""
    if budget is None:
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if sum(block_bytes(n) for _, n in blocks(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _tile_plan(sizes, tile, n_workers, n_steps, scratch):
    return AttentionPlan(
        **sizes,
        heads=tile.heads,
        rows=tile.rows,
        keys=tile.keys,
        n_splits=tile.splits,
        n_workers=n_workers,
        n_steps=n_steps,
        scratch=scratch,
    )


# ---------------------------------------------------------------- method "steps"


def _plan_steps(sizes):
    """Whole K*Q of floor(budget / bytes per head) heads: the PR's steps, never over."""
    head_bytes = 4 * sizes["n_tokens"] * sizes["n_kv"]
    fixed = _step_conversion(sizes) + _step_concat(sizes)

    def blocks(heads):
        return (("kq", heads * head_bytes), *fixed)

    heads = _most_that_fit(blocks, sizes["n_head"], sizes["budget"])
    if not heads:
        needed = sum(block_bytes(n) for _, n in blocks(1))
        raise _too_small(sizes, needed, 'one head of method="steps"')
    return AttentionPlan(
        **sizes,
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
    chunk = 4 * keys * max(sizes["d_k"], sizes["d_v"])
    return (("kv chunk", chunk), ("kqv part", 4 * sizes["n_tokens"] * sizes["d_v"]))


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


def is_genuine(plan):
    """Whether `plan` is what `plan_attention` makes of its sizes and budget, unchanged since."""
    try:
        return _is_made_anew(plan)
    except TypeError:  # a list or the like in a field: no plan of ours can fail to hash
        return False


@functools.lru_cache(maxsize=256)
def _is_made_anew(plan):
    sizes = dict(plan.sizes)
    kv_dtype = (sizes.pop("k_dtype"), sizes.pop("v_dtype"))
    choices = {name: getattr(plan, name) for name in ("method", "assemble", "budget", "n_threads")}
    try:
        return plan_attention(**sizes, kv_dtype=kv_dtype, **choices) == plan
    except (TypeError, ValueError, BudgetError):
        return False


def _count(name, value, least):
    if type(value) is not int and not _is_integral(value):
        raise TypeError(f"{name}: expected an int >= {least}, got {value!r}")
    if not least <= value <= MOST_OF_A_KIND:
        raise ValueError(f"{name}: expected an int, {least} to {MOST_OF_A_KIND}, got {value}")
    return int(value)


def _is_integral(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _largest_divisor(n, at_most):
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return max(d for d in (*small, *(n // d for d in small)) if d <= at_most)


def dtype_name(dtype, argument="dtype"):
    """The name of a dense dtype or quantised type: "float32", "bfloat16", "Q8_0"."""
    if isinstance(dtype, str):
        return _SHORT_NAMES.get(dtype, dtype)
    try:
        name = _name_of(dtype)
    except TypeError:  # one that cannot be looked up
        name = _name_of.__wrapped__(dtype)
    if name is None:
        raise TypeError(f'{argument}: expected a dtype or a name such as "float32", got {dtype!r}')
    return name


@functools.lru_cache(maxsize=64)  # NumPy puts a dtype's name together each time it is asked
def _name_of(dtype):
    return getattr(dtype, "name", None) or getattr(dtype, "__name__", None)


def _kv_dtypes(kv_dtype):
    pair = kv_dtype if isinstance(kv_dtype, (tuple, list)) else (kv_dtype, kv_dtype)
    if len(pair) != 2:
        raise ValueError(f"kv_dtype: expected one type or (type of K, type of V), got {kv_dtype!r}")
    names = tuple(dtype_name(d, "kv_dtype") for d in pair)
    for name in names:
        if name not in KV_BLOCK_WEIGHTS:
            raise ValueError(
                f"kv_dtype: expected one of {', '.join(KV_BLOCK_WEIGHTS)}; got {name!r}"
            )
    return names


def _check_kv_types(k_dtype, v_dtype, d_k, d_v, v_in_k):
    for argument, width, dtype in (("d_k", d_k, k_dtype), ("d_v", d_v, v_dtype)):
        block = KV_BLOCK_WEIGHTS[dtype]
        if width % block:
            raise ValueError(
                f"{argument}: must be a multiple of {block}, the weights in a block of {dtype}; "
                f"got {width}"
            )
    if v_in_k and (k_dtype != v_dtype or d_v > d_k):
        raise ValueError(
            f"v_in_k: V can be a range of K's columns only with K's type and at most its {d_k} "
            f"columns; got {v_dtype} in {k_dtype}, d_v={d_v}"
        )
