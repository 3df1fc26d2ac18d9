"""One rank's end of a group: the calls, what they check, and what stands behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lowlevel import checks, devices, ops
from lowlevel.pool import Pool

from .plan import CommPlan, Outline, plan_transfer, shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from lowlevel.shapes import Array, Shape

_Result = TypeVar("_Result")


class RankError(ValueError):
    """What another rank refused, or died of.

    Attributes
    ----------
    rank : int
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.rank = rank


class Comm:
    """One rank's end of a group. Each rank makes the same calls in the same order, with arrays of the same shape.

    Calls are queued on the current stream, as kernels are; those of ranks in other processes return when the
    transfer is done. Arrays are contiguous and lie on `device`.

    Attributes
    ----------
    rank, size : int
        This rank, from 0 on, and how many there are.
    device : str
    outline : Outline
        What plans go by.
    """

    def __init__(self, device: str, outline: Outline) -> None:
        self._device = devices.get(device)
        self.device = self._device.name
        self.outline = outline
        self.rank, self.size = outline.rank, outline.size

    def __repr__(self) -> str:
        return f"<Comm rank {self.rank} of {self.size}, {self.device}, by {self.outline.engine}>"

    # ------------------------------------------------------------ arrays

    def plan(self, call: str, shape: Shape, dtype: DTypeLike) -> CommPlan:
        """What a call takes; see `plan_transfer`."""
        return plan_transfer(call, shape, dtype, self.outline)

    def reserve(self, staging_bytes: int) -> None:
        """Take the host's memory that transfers go through: the most of any plan's `staging_bytes`."""

    def all_reduce(
        self, x: Array, *, pool: Pool | None = None, n_threads: int | None = None
    ) -> Array:
        """Replace `x` by the sum over all ranks: the same bits everywhere, whatever the timing.

        Parameters
        ----------
        x : array
            Of one shape on all ranks, and of a dtype that activations have there: float32; on GPUs float16 and bfloat16
            too. Each addition is rounded to it.
        pool : Pool, optional
            Where scratch comes from; None: a private pool of just that.
        n_threads : int, optional
            Of the sum; as for `lowlevel.ops.add`.

        Returns
        -------
        array
            `x`. Numbers are added rank by rank from 0 on: ``((x0 + x1) + x2) + ...``; with NCCL in its own order.

        Raises
        ------
        TypeError, ValueError
            An argument that does not fit; nothing has been sent.
        BudgetError
            `pool` has no room for the plan's scratch; nothing has been sent.
        RankError
            Another rank has failed, or asks for something else.
        """
        self._check(x, "x", self._device.activations, written=True)
        checks.check_pool(pool, self._device)
        if self.size == 1 or not x.size:
            return x
        plan = self.plan("all_reduce", x.shape, x.dtype)
        flat = x.reshape(-1)
        if not plan.scratch:
            self._sum(flat, plan)
            return x
        with contextlib.ExitStack() as stack:
            if pool is None:
                pool = stack.enter_context(Pool(plan.scratch_bytes, device=self.device))
            call = pool.call("all_reduce", n_ranks=self.size, scratch_bytes=plan.scratch_bytes)
            stack.enter_context(call)
            stack.enter_context(pool.scope("all_reduce"))
            parts = pool.empty((self.size - 1, plan.share), x.dtype, tag="parts")
            own = shares(flat.size, plan.share, self.size)
            self._scatter(flat, own, parts)
            self._add_up(flat[own[self.rank]], parts, n_threads)
            self._collect(flat, own)
        return x

    def all_gather(self, x: Array, out: Array) -> Array:
        """Write every rank's `x` to ``out[rank]``.

        Parameters
        ----------
        x : array
            Of one shape and dtype on all ranks.
        out : array, (size, *shape of x)
            Of x's dtype.

        Returns
        -------
        array
            `out`.

        Raises
        ------
        TypeError, ValueError, RankError
            As `all_reduce`.
        """
        self._check(x, "x")
        self._check(out, "out", (x.dtype.name,), written=True)
        checks.check_shape(out, "out", (self.size, *x.shape), ", a plane for each rank's x")
        checks.check_apart(out, "out", self._device, {"x": x})
        if not x.size:
            return out
        self._device.copy(out[self.rank], x)
        if self.size > 1:
            n = x.size
            own = [slice(rank * n, rank * n + n) for rank in range(self.size)]
            self._collect(out.reshape(-1), own)
        return out

    def broadcast(self, x: Array, root: int = 0) -> Array:
        """Replace `x` by what it is on the rank `root`.

        Raises
        ------
        TypeError, ValueError, RankError
            As `all_reduce`.
        """
        self._check(x, "x", written=True)
        root = self._rank(root, "root")
        if self.size > 1 and x.size:
            whole, nothing = slice(0, x.size), slice(0, 0)
            own = [whole if rank == root else nothing for rank in range(self.size)]
            self._collect(x.reshape(-1), own)
        return x

    def send(self, x: Array, to: int) -> None:
        """Hand `x` to another rank, which calls `receive`.

        Raises
        ------
        TypeError, ValueError, RankError
            As `all_reduce`; `to` is this rank itself.
        """
        self._check(x, "x")
        self._send(x.reshape(-1), self._other(to, "to"))

    def receive(self, out: Array, source: int) -> Array:
        """Write what the rank `source` sends to `out`, of its shape and dtype.

        Raises
        ------
        TypeError, ValueError, RankError
            As `all_reduce`; `source` is this rank itself.
        """
        self._check(out, "out", written=True)
        self._receive(out.reshape(-1), self._other(source, "source"))
        return out

    # ------------------------------------------------------------ small values

    def share(self, value: Any) -> list[Any]:
        """Small Python values of all ranks, in their order; ranks wait here for one another.

        Raises
        ------
        RankError
            Another rank has failed.
        """
        raise NotImplementedError

    def together(self, run: Callable[[], _Result]) -> _Result:
        """What `run` gives on this rank, once it has gone well on all: what one refuses, all refuse.

        Raises
        ------
        Exception
            What `run` raises here.
        RankError
            It raised elsewhere.
        """
        result: Any = None
        error: Exception | None = None
        try:
            result = run()
        except Exception as own:
            error = own
        told = self.share(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            error.on_all_ranks = True  # type: ignore[attr-defined]  # nobody waits for this rank
            raise error
        for rank, message in enumerate(told):
            if message is not None:
                refusal = RankError(rank, message)
                refusal.on_all_ranks = True  # type: ignore[attr-defined]
                raise refusal
        return result

    def fail(self, error: BaseException) -> None:
        """End all ranks with an error of this one."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the group holds."""

    # ------------------------------------------------------------ what engines do, and what helps them

    def _scatter(self, flat: Array, own: Sequence[slice], parts: Array) -> None:
        """This rank's items ``own[rank]`` of the other ranks' `flat`, to the rows of `parts` in order of rank."""
        raise NotImplementedError

    def _collect(self, flat: Array, own: Sequence[slice]) -> None:
        """Each rank's items ``own[rank]`` of its `flat` to the same places of all others'."""
        raise NotImplementedError

    def _sum(self, flat: Array, plan: CommPlan) -> None:
        """An engine's own sum of `flat`, in place."""
        raise NotImplementedError

    def _send(self, flat: Array, to: int) -> None:
        raise NotImplementedError

    def _receive(self, flat: Array, source: int) -> None:
        raise NotImplementedError

    def _refuse_other(self, what: tuple[Any, ...], told: Sequence[tuple[Any, ...]]) -> None:
        """Raise RankError for the first rank that is at another call than this one."""
        for rank, other in enumerate(told):
            if other != what:
                raise RankError(
                    rank, f"it is at {other}, rank {self.rank} at {what}: all make the same calls"
                )

    def _add_up(self, mine, parts, n_threads):
        """``mine = part of rank 0 + that of rank 1 + ...``, `mine` being this rank's."""
        if not mine.size:
            return
        addends = [_as_rows(part[: mine.size]) for part in parts]
        addends.insert(self.rank, _as_rows(mine))
        for addend in addends[1:]:
            ops.add(addends[0], addend, n_threads=n_threads)
        if self.rank:
            self._device.copy(mine, addends[0].reshape(-1))

    def _check(self, array, name, dtypes=None, written=False):
        checks.check_device(array, name, self._device, "this rank's group")
        if dtypes is not None:
            checks.check_dtype(array, name, self._device, dtypes)
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: expected an array without gaps, got strides {array.strides} for shape "
                f"{tuple(array.shape)}; numpy.ascontiguousarray({name}) would do"
            )
        if written:
            checks.check_writable(array, name, self._device)

    def _rank(self, value, name):
        return checks.whole_number(value, name, 0, self.size - 1)

    def _other(self, value, name):
        rank = self._rank(value, name)
        if rank == self.rank:
            raise ValueError(f"{name}: {rank} is this rank itself; give another one")
        return rank


def _as_rows(flat: Array) -> Array:
    """Items as rows that kernels and threads can share."""
    for width in (1024, 64):
        if flat.size % width == 0:
            return flat.reshape(-1, width)
    return flat.reshape(1, -1)


def n_bytes_of(items: slice, dtype: np.dtype) -> int:
    """Bytes of a range of items."""
    return (items.stop - items.start) * dtype.itemsize
