"""Attention inside a memory budget: the call, its plan, sources of K and V, the float64 reference."""

from .call import attention
from .merge import merge_states
from .plan import AttentionPlan, plan_attention

__all__ = ["AttentionPlan", "attention", "merge_states", "plan_attention"]
