"""A model as `quant.models.fit` sees it: from a file's header, or from a named geometry that need not exist."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from typing import TYPE_CHECKING

from ..gguf.model_file import ModelFileError
from ..gguf.model_file import open as open_model
from .config import ModelConfig
from .fit import INPUT, OUTPUT, FeedForward, Layer, ModelMemory, Weight
from .named_geometries import GEOMETRIES, named_geometry
from .planned_file import PlannedFile
from .synthetic.make_gguf import plan_tensors

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from quant.models.geometry import ModelGeometry

    from ..gguf.model_file import ModelFile


_LAYER = re.compile(r"blk\.(\d{1,6})\.")
PREDICTORS = "predictors (NextN)"  # layers behind those of a plain pass
# The first pattern that a tensor's name contains says its class.
_KINDS = (
    ("token_embd", "token embedding"),
    ("norm", "norms"),
    ("_exps", "experts"),
    ("_shexp", "shared experts"),
    ("ffn_gate_inp", "router"),
    ("exp_probs", "router"),
    ("ffn_", "feed-forward"),
    ("attn_", "attention"),
    ("output.weight", "output"),
)


def memory_model(
    model: str | os.PathLike[str], qtype: str = "Q8_0", mla_form: str | None = None
) -> ModelMemory:
    """What counts of a model's memory.

    Parameters
    ----------
    model : str or os.PathLike
        A GGUF file (any part of a split one), or the name of a geometry in `quant.models.named_geometries.GEOMETRIES`.
    qtype : str
        For a named geometry: the format of the bulk, as for `make_gguf`.
    mla_form : str, optional
        For a named geometry: "split", "fused" or "both", as for `make_gguf`.

    Returns
    -------
    quant.models.fit.ModelMemory

    Raises
    ------
    OSError, ModelFileError, ValueError
        The file cannot be read or lacks what is needed; no such type or form.
    """
    if str(model) in GEOMETRIES:
        geometry = named_geometry(str(model))
        return of_geometry(geometry.resized(mla_form=mla_form) if mla_form else geometry, qtype)
    with open_model(model) as file:
        attention = file.attention
        infos = [file.tensor_info(name) for name in file]
        tensors = [(info.name, info.type_name, info.n_bytes, info.shape) for info in infos]
        key = f"{attention.architecture}.expert_used_count"
        n_expert_used = file.metadata.get(key, 0)
        if type(n_expert_used) is not int or not 0 <= n_expert_used < 2**32:
            raise ModelFileError(f"{file.paths[0]}: metadata {key!r} is no count")
        if attention.n_layer > len(tensors):
            raise ModelFileError(
                f"{file.paths[0]}: {attention.n_layer} layers by its metadata, {len(tensors)} tensors"
            )
        form = _mla_form(file) if attention.is_mla else ""
        bounded = sorted({info.type_name for info in infos if not info.size_known})
        notes = (
            f"type {', '.join(bounded)}: of unknown size, bounded by where the next tensor begins",
        ) * bool(bounded)
        found = _memory_model(str(model), tensors, attention, n_expert_used, form, notes)
        return _with_config(found, file)


def header_of(
    model: str | os.PathLike[str], qtype: str = "Q8_0", mla_form: str | None = None
) -> AbstractContextManager[ModelFile | PlannedFile]:
    """The same as readers of headers take it: an open file, or a named geometry's; arguments as `memory_model`."""
    if str(model) not in GEOMETRIES:
        return open_model(model)
    geometry = named_geometry(str(model))
    planned = PlannedFile(geometry.resized(mla_form=mla_form) if mla_form else geometry, qtype)
    return contextlib.nullcontext(planned)


def of_geometry(geometry: ModelGeometry, qtype: str) -> ModelMemory:
    """The `ModelMemory` of a `ModelGeometry` whose bulk has a type."""
    tensors = [
        (tensor.spec.name, tensor.block.name, tensor.n_bytes, tensor.spec.shape)
        for tensor in plan_tensors(geometry, qtype)
    ]
    form = geometry.mla_form if geometry.kv_lora_rank else ""
    found = _memory_model(geometry.name, tensors, geometry.attention, geometry.n_expert_used, form)
    return _with_config(found, PlannedFile(geometry, qtype))


def _with_config(found, file):
    """With what its passes are planned by, where they are modelled."""
    try:
        return dataclasses.replace(found, config=ModelConfig.from_file(file))
    except ValueError as error:  # the reason why this file does not run
        return dataclasses.replace(found, unmodelled=str(error))


def _mla_form(file):
    """How a file holds the decompression: llama.cpp absorbs it where the keys say the heads' sizes."""
    if f"{file.attention.architecture}.attention.key_length_mla" in file.metadata:
        return "split"
    return "both" if "blk.0.attn_k_b.weight" in file else "fused"


def _memory_model(name, tensors, attention, n_expert_used, mla_form="", notes=()):
    n_layer = attention.n_layer
    rows_of = {tensor: shape[-2] for tensor, _, _, shape in tensors if len(shape) > 1}
    weights = [
        Weight(tensor, _kind(tensor, n_layer), qtype, n_bytes, _layer(tensor, n_layer))
        for tensor, qtype, n_bytes, _ in tensors
    ]
    if "output.weight" not in rows_of:
        # The embedding serves again, and is copied to the output's device.
        weights += [
            Weight("output.weight", "output", weight.qtype, weight.n_bytes, OUTPUT)
            for weight in weights
            if weight.name == "token_embd.weight"
        ]
    if any(weight.kind == PREDICTORS for weight in weights):
        notes += (
            f"{PREDICTORS}: counted, although a run that does not use them may leave them out",
        )
    per_layer = [
        _per_layer(n, n_layer) for n in (attention.n_head, attention.n_head_kv, attention.window)
    ]
    layers = tuple(
        _layer_memory(number, attention, *sizes, rows_of, n_expert_used)
        for number, sizes in enumerate(zip(*per_layer, strict=True))
    )
    if not any(layer.n_head_kv for layer in layers):
        raise ValueError(f"{name}: {attention.no_heads}")
    return ModelMemory(
        name=name,
        weights=tuple(weights),
        layers=layers,
        context_length=attention.context_length,
        n_vocab=rows_of.get("output.weight", rows_of.get("token_embd.weight", 0)),
        n_embd=attention.n_embd,
        mla_form=mla_form,
        notes=notes,
    )


def _layer_memory(number, attention, n_head, n_head_kv, window, rows_of, n_expert_used):
    def rows(tensor):
        return rows_of.get(f"blk.{number}.{tensor}.weight", 0)

    n_embd = attention.n_embd
    if not (n_head and n_head_kv):
        n_head = n_head_kv = 0
    d_k, d_v = attention.d_k, attention.d_v
    if window:
        d_k, d_v = attention.d_k_window or d_k, attention.d_v_window or d_v
    latent, n_rot = (attention.kv_lora_rank, attention.n_rot) if attention.is_mla else (0, 0)
    experts = n_expert_used if rows("ffn_gate_exps") or rows("ffn_gate_up_exps") else 0
    gate_up = 2 * rows("ffn_gate_exps") + rows("ffn_gate_up_exps")
    feed_forward = FeedForward(
        dense=rows("ffn_gate") or rows("ffn_up"),
        expert=gate_up // 2 if experts else 0,
        shared=rows("ffn_gate_shexp"),
        n_used=experts,
    )
    stream = {"residual": n_embd, "normed": n_embd}
    return Layer(
        n_head=n_head,
        n_head_kv=n_head_kv,
        d_k=d_k,
        d_v=d_v,
        window=window,
        latent=latent,
        n_rot=n_rot,
        feed_forward=feed_forward,
        phases={
            "attention": {
                **stream,
                "compressed q": rows("attn_q_a"),
                "q": n_head * d_k,
                "k, v": latent + n_rot if latent else n_head_kv * (d_k + d_v),
                "kqv": n_head * d_v,
            },
            "attention output": {"residual": n_embd, "kqv": n_head * d_v, "out": n_embd},
            "feed-forward": {
                **stream,
                "gate, up": 2 * feed_forward.dense,
                "experts' gate, up": experts * gate_up,
                "experts' out": experts * n_embd,
                "shared gate, up": 2 * feed_forward.shared,
                "out": n_embd,
            },
        },
    )


def _kind(tensor, n_layer):
    match = _LAYER.match(tensor)
    if match and int(match[1]) >= n_layer:
        return PREDICTORS
    return next((kind for pattern, kind in _KINDS if pattern in tensor), "other")


def _layer(tensor, n_layer):
    """Where a tensor lives, as llama.cpp has it."""
    match = _LAYER.match(tensor)
    if match and int(match[1]) < n_layer:
        return int(match[1])
    if match:  # layers beyond those that count: predictors of further tokens
        return n_layer - 1
    if tensor.startswith("token_embd"):
        return INPUT
    return OUTPUT if tensor.startswith("output") else 0


def _per_layer(n, n_layer):
    return (n,) * n_layer if isinstance(n, int) else n
