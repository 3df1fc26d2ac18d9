"""What a pool says where it does not do what it is asked: too few bytes, no array of its own, blocks that are in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arena import smallest_size
from .block import holders
from .budget_error import BudgetError, exact_size, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowlevel.devices import Device

    from .arena import Arena
    from .block import Block
    from .memory import ArenaMemory, GuardedMemory


def fragmentation(arena: Arena) -> float:
    """Share of the free bytes that lies outside the largest hole, 0 to 1."""
    free = arena.size - arena.used
    return 1 - arena.largest_free / free if free else 0.0


def refused(
    what: str, requested: int, n_bytes: int, arena: Arena, budget: int, blocks: Sequence[Block]
) -> BudgetError:
    """The error for `requested` bytes, `n_bytes` as they are taken, beside the blocks that live."""
    smallest = smallest_size(n_bytes, [(block.offset, block.n_bytes) for block in blocks])
    free = arena.size - arena.used
    remedy = (
        f"A budget of {exact_size(smallest)} would hold it with the present blocks where they are"
    )
    if n_bytes <= free:
        remedy += (
            f"; fragmentation alone is the cause: {exact_size(free)} are free, in pieces. "
            "Free in the reverse order of taking, or take what lives long first."
        )
    else:
        remedy += f"; it is {exact_size(n_bytes - free)} more than is free."
    return refusal(
        what,
        requested=requested,
        rounded=n_bytes,
        budget=budget,
        used=arena.used,
        largest_free=arena.largest_free,
        fragmentation=fragmentation(arena),
        holders=holders(blocks),
        smallest_budget=smallest,
        remedy=remedy,
    )


def why_not_mine(
    array: Any, device: Device, memory: ArenaMemory | GuardedMemory, blocks: Sequence[Block]
) -> str:
    """Why `free` does not take an array that is no live one of the pool's."""
    address = device.address(array)
    if address is None:
        return f"array: expected an array that empty() returned, got {type(array).__name__}"
    offset = memory.offset_of(address)
    if offset is None:
        return "array: not from this pool"
    for block in blocks:
        if block.offset <= offset < block.offset + block.n_bytes:
            return (
                f"array: a view of block {block}, or freed before that one was taken; "
                "free the array itself that empty() returned, once"
            )
    return "array: freed before (or a view of one that was)"


def text_of_refused_close(blocks: Sequence[Block]) -> str:
    """Of a debug pool whose blocks other threads work on."""
    lines = "".join(f"\n  {block}, by thread {block.thread!r}" for block in blocks)
    return (
        f"debug pool not closed: other threads work on {len(blocks)} block(s), and poisoning them would "
        f"spoil their results; close it when they have left their scopes and calls:{lines}"
    )
