"""The ground floor of kqcap: memory pools, attention plans, attention, concat. Knows nothing of GGUF."""

from .arrays import asarray, asnumpy
from .attention import attention, merge_states
from .concat import concat
from .plan import AttentionPlan, plan_attention
from .pool import Block, BudgetError, Pool
from .version import __version__

__all__ = [
    "AttentionPlan",
    "Block",
    "BudgetError",
    "Pool",
    "__version__",
    "asarray",
    "asnumpy",
    "attention",
    "concat",
    "merge_states",
    "plan_attention",
]
