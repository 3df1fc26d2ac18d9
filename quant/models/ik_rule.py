"""What ik_llama.cpp's ``-amb`` does with the same sizes, for comparison. Pure arithmetic.

Read at commit 8337e4cd3. Sizes there are whole MiB (the fraction is cut off), values from 1 to 127
count as 128, and the K*Q of one step may exceed the cap: heads are shared out by a rounded-up
division, and one head is the least it can do.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IkSteps", "ik_steps"]

MIB = 2**20
SMALLEST_AMB_MIB = 128


@dataclass(frozen=True)
class IkSteps:
    """How ik_llama.cpp would split one K*Q.

    Attributes
    ----------
    kq_mib : int
        Its idea of the whole K*Q: MiB, cut off.
    amb_mib : int
        The cap it works with, MiB; 0: none.
    n_steps : int
        Steps by its formula (what the pull request's text counts).
    heads : int
        Heads of a full step, rounded up.
    n_launches : int
        Steps its loop really makes: at `heads` heads each it may be through earlier.
    kq_bytes : int
        K*Q of a full step.
    overshoot_bytes : int
        How far that is above the cap asked for.
    reason : str
        Why it does not split although the cap asks for it; else "".
    """

    kq_mib: int
    amb_mib: int
    n_steps: int
    heads: int
    n_launches: int
    kq_bytes: int
    overshoot_bytes: int
    reason: str = ""


def ik_steps(
    *,
    n_head: int,
    n_tokens: int,
    n_kv: int,
    amb_mib: int,
    n_head_kv: int | None = None,
    sinks: bool = False,
    mla: bool = False,
) -> IkSteps:
    """The steps of ik_llama.cpp's attention without flash attention.

    Parameters
    ----------
    n_head, n_tokens, n_kv : int
        Query heads, query rows of the u-batch, keys.
    amb_mib : int
        The ``-amb`` value in MiB; 0: no cap.
    n_head_kv : int, optional
        K/V heads; None: `n_head`. Only the standard path cares.
    sinks : bool
        The model has attention sinks. Only the standard path cares.
    mla : bool
        The multi-head latent attention path (deepseek2), which splits into groups of heads. The
        standard path goes head by head as soon as the whole does not fit, and not at all with
        grouped K/V heads or sinks.
    """
    if amb_mib < 0:
        raise ValueError(f"amb_mib: give MiB, 0 for no cap; got {amb_mib}")
    head_bytes = n_kv * n_tokens * 4
    kq_mib = n_head * head_bytes // MIB
    cap_mib = max(amb_mib, SMALLEST_AMB_MIB) if amb_mib else 0
    fits = not cap_mib or cap_mib >= kq_mib
    reason = "" if fits or mla else _never_split(n_head, n_head_kv, sinks)

    if fits or reason:
        n_steps, heads = 1, n_head
    elif mla:
        n_steps = min(_ceil_div(kq_mib, cap_mib), n_head)
        heads = _ceil_div(n_head, n_steps)
    else:
        n_steps, heads = n_head, 1

    kq_bytes = heads * head_bytes
    return IkSteps(
        kq_mib=kq_mib,
        amb_mib=cap_mib,
        n_steps=n_steps,
        heads=heads,
        n_launches=_ceil_div(n_head, heads),
        kq_bytes=kq_bytes,
        overshoot_bytes=max(0, kq_bytes - amb_mib * MIB) if amb_mib else 0,
        reason=reason,
    )


def _never_split(n_head, n_head_kv, sinks):
    if n_head_kv not in (None, n_head):
        return "grouped K/V heads are never split"
    return "attention sinks are never split" if sinks else ""


def _ceil_div(a, b):
    return -(-a // b)
