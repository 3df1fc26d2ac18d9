"""What kqcap takes for a model: by the plans of its passes, to the byte; an estimate where passes are not modelled.

The first is what `quant.load` would take with the same choices. The second is for files whose pass is refused
(`ModelMemory.unmodelled` says why), and for GPUs of so many multiprocessors.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lowlevel import devices
from lowlevel.attention.plan import plan_attention
from lowlevel.pool.arena import align_up
from lowlevel.pool.budget_error import BudgetError

from .choices import choices_of
from .fit import KV_TYPES, Compute, phase_bytes, row_bytes
from .kv_cache import kv_type, stores
from .plan import Planned, pass_key

if TYPE_CHECKING:
    from lowlevel.attention.plan import AttentionPlan

    from .fit import Layer, ModelMemory, Setting

BY_PASSES = "kqcap's: K/V cache and compute memory by the plans of its passes, to the byte, as it takes them"
ESTIMATED = "kqcap's: attention's scratch as it is taken, to the byte; the logits of one token; activations are an estimate"


def is_by_passes(model: ModelMemory, setting: Setting) -> bool:
    """Whether a model's memory is known by its passes."""
    are_threads = devices.get(setting.device).has_threads
    return model.config is not None and (are_threads or setting.n_threads is None)


def counted(model: ModelMemory, setting: Setting) -> str:
    """One sentence for the reader: what is counted, and how sure it is."""
    if is_by_passes(model, setting):
        return BY_PASSES
    why = (
        f"its pass is not modelled: {model.unmodelled}"
        if model.config is None
        else "passes are planned for the GPU that there is, not for -t multiprocessors"
    )
    return f"{ESTIMATED}: {why}"


def kv_bytes(model: ModelMemory, number: int, setting: Setting) -> int:
    """Bytes of one layer's K/V cache."""
    if is_by_passes(model, setting):
        layer, n_ubatch = model.config.layers[number], min(setting.n_ubatch, setting.n_ctx)
        kept = stores(layer, setting.n_ctx, n_ubatch, kv_type(setting.kv_type))
        return sum(store.n_bytes for store in kept)
    return _estimated_kv_bytes(model.layers[number], setting)


def compute(
    model: ModelMemory, numbers: list[int], has_output: bool, setting: Setting, absorbed: bool
) -> Compute:
    """Bytes of what passes work in, on a device with some of the layers.

    Parameters
    ----------
    model : ModelMemory
    numbers : list of int
        The layers.
    has_output : bool
        Logits come out here.
    setting : Setting
    absorbed : bool
        Of the estimate: latents are read as they are.
    """
    if is_by_passes(model, setting) and (numbers or has_output):
        memory = _planned(model, tuple(numbers), has_output, setting).memory(0)
        return Compute(
            scratch=memory.scratch,
            activations=memory.workspace - memory.scratch,
            inputs=memory.inputs,
            weights_made=memory.weights_made,
        )
    return _estimated_compute(
        model, [model.layers[n] for n in numbers], has_output, setting, absorbed
    )


def run_options(setting: Setting) -> dict[str, Any]:
    """How `quant.load` runs what a setting says, as arguments of its."""
    return dict(
        n_ctx=setting.n_ctx,
        n_ubatch=setting.n_ubatch,
        amb=setting.amb,
        kv_type=setting.kv_type,
        mla="auto" if setting.mla is None else setting.mla,
        exact=False,
        method=setting.method,
        n_threads=setting.n_threads,
    )


def _planned(model, numbers, has_output, setting):
    """The `Planned` of some layers; passes that do not change with the context are kept beside the model."""
    config = model.config
    if len(numbers) < len(config.layers) or not has_output:
        layers = tuple(config.layers[n] for n in numbers)
        has_input = bool(numbers) and numbers[0] == 0
        config = dataclasses.replace(
            config, layers=layers, has_input=has_input, has_output=has_output
        )
    choices = choices_of(config, devices.get(setting.device), **run_options(setting))
    try:
        return _with_passes(model, (numbers, has_output), config, choices)
    except BudgetError:  # as `quant.load` does: amb holds no tile of decompressed K and V
        if choices.mla not in (3, "auto"):
            raise
        absorbed = dataclasses.replace(choices, mla=1)
        return _with_passes(model, (numbers, has_output), config, absorbed)


def _with_passes(model, part, config, choices):
    return Planned(config, choices, model.passes.setdefault((part, pass_key(choices)), {}))


# ---------------------------------------------------------------- the estimate


def _rows(layer, setting):
    """Rows that a layer's cache has: the context, or a window and one u-batch."""
    if not layer.window:
        return setting.n_ctx
    return min(setting.n_ctx, layer.window + min(setting.n_ubatch, setting.n_ctx))


def _estimated_kv_bytes(layer, setting):
    rows = _rows(layer, setting)
    if layer.latent:
        return rows * row_bytes(layer.latent + layer.n_rot, setting.kv_type)
    return rows * sum(
        row_bytes(layer.n_head_kv * d, setting.kv_type) for d in (layer.d_k, layer.d_v)
    )


def attention_plan(layer: Layer, setting: Setting, absorbed: bool) -> AttentionPlan:
    """The `AttentionPlan` of one layer's attention at the full context; BudgetError where amb is too little."""
    sizes: dict[str, Any] = (
        dict(n_head_kv=1, d_k=layer.latent + layer.n_rot, d_v=layer.latent, v_in_k=True)
        if absorbed and layer.latent
        else dict(n_head_kv=layer.n_head_kv, d_k=layer.d_k, d_v=layer.d_v)
    )
    return plan_attention(
        n_head=layer.n_head,
        n_tokens=min(setting.n_ubatch, setting.n_ctx),
        n_kv=_rows(layer, setting),
        kv_dtype=KV_TYPES[setting.kv_type][0],
        budget=setting.amb,
        method=setting.method,
        n_threads=setting.n_threads,
        device=setting.device,
        **sizes,
    )


def _estimated_compute(model, layers, has_output, setting, absorbed):
    n_tokens = min(setting.n_ubatch, setting.n_ctx)
    kinds = list({layer[:-1]: layer for layer in layers if layer.n_head_kv}.values())
    activations = [phase_bytes(layer, n_tokens) for layer in layers]
    for layer in kinds:
        if layer.latent and absorbed:  # beside the layer's own the queries as latents
            more = layer.n_head * (2 * layer.latent + layer.n_rot - layer.d_v)
            activations.append(phase_bytes(layer, n_tokens, "attention") + 4 * n_tokens * more)
    # of the last token alone; beside them the hidden state and its norm
    activations.append(8 * model.n_embd * n_tokens if has_output else 0)
    plans = [attention_plan(layer, setting, absorbed) for layer in kinds]
    return Compute(
        scratch=max((plan.scratch_bytes for plan in plans), default=0),
        logits=align_up(4 * model.n_vocab) if has_output else 0,
        activations=max(activations),
    )
