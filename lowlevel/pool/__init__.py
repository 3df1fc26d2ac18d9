"""Memory pools with a hard cap: one arena, who holds what, and the trace that a pool writes.

`pool.py` is the pool; `arena.py` places blocks; `memory.py` is what lies under them (debug pools guard it);
`stream_order.py` keeps streams of a GPU apart; `trace.py` writes what happens, for `lowlevel.inspect` to read.
"""

from .pool import ALIGNMENT, Block, BudgetError, MemoryCorruptionError, Pool
from .trace import Trace

__all__ = ["ALIGNMENT", "Block", "BudgetError", "MemoryCorruptionError", "Pool", "Trace"]
