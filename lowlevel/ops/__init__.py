"""The small operations of models: one public function each, the same calls on the CPU and on GPUs.

Where they run is where their arrays lie. Activations are rows, (n_tokens, n) or (planes, n_tokens, n), with a
contiguous last axis and any stride of the others: float32 on the CPU; float32, float16 or bfloat16 on a GPU, in and
out as the caller's arrays are, with arithmetic in float32. Nothing is allocated: results go where the caller says, and what
needs scratch has a plan and takes it from a pool. On a GPU a call returns before the work is done, and no call waits.
"""

from .elementwise import add, cast, scale
from .gated import clamped_swiglu, geglu, swiglu
from .norm import rms_norm
from .rope import RopeFrequencies, rope, rope_frequencies
from .routing import GATINGS, top_k_routing
from .rows import ScatterPlan, gather_rows, plan_scatter_add, put_rows, scatter_add
from .sorting import sort_by_expert

__all__ = [
    "GATINGS",
    "RopeFrequencies",
    "ScatterPlan",
    "add",
    "cast",
    "clamped_swiglu",
    "gather_rows",
    "geglu",
    "plan_scatter_add",
    "put_rows",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "scale",
    "scatter_add",
    "sort_by_expert",
    "swiglu",
    "top_k_routing",
]
