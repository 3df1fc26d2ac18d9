"""The ground floor of kqcap: memory pools, attention plans, attention, concat. Knows nothing of GGUF."""

from .arrays import asarray, asnumpy
from .attention.call import attention, merge_states
from .attention.plan import AttentionPlan, plan_attention
from .concat import concat
from .pool import Block, BudgetError, Pool

__all__ = [
    "AttentionPlan",
    "Block",
    "BudgetError",
    "Pool",
    "asarray",
    "asnumpy",
    "attention",
    "concat",
    "merge_states",
    "plan_attention",
]
