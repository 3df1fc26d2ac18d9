"""The ground floor of kqcap: memory pools, attention plans, attention, concat. Knows nothing of GGUF."""

from . import ops
from .arrays import asarray, asnumpy
from .attention import AttentionPlan, attention, merge_states, plan_attention
from .concat import concat
from .pool import Block, BudgetError, Pool, Trace
from .version import __version__

__all__ = [
    "AttentionPlan",
    "Block",
    "BudgetError",
    "Pool",
    "Trace",
    "__version__",
    "asarray",
    "asnumpy",
    "attention",
    "concat",
    "merge_states",
    "ops",
    "plan_attention",
]
