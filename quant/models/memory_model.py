"""A model as `quant.models.fit` sees it: from a file's header, or from a named geometry that need not exist."""

import re

from ..gguf.model_file import ModelFileError
from ..gguf.model_file import open as open_model
from .fit import INPUT, OUTPUT, Layer, ModelMemory, Weight
from .geometry import GEOMETRIES, named_geometry
from .synthetic.make_gguf import plan_tensors

_LAYER = re.compile(r"blk\.(\d{1,6})\.")
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


def memory_model(model, qtype="Q8_0", mla_form=None):
    """What counts of a model's memory.

    Parameters
    ----------
    model : str or os.PathLike
        A GGUF file (any part of a split one), or the name of a geometry in `quant.models.geometry.GEOMETRIES`.
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
        geometry = geometry.resized(mla_form=mla_form) if mla_form else geometry
        tensors = [
            (tensor.spec.name, tensor.block.name, tensor.n_bytes, tensor.spec.shape)
            for tensor in plan_tensors(geometry, qtype)
        ]
        return _memory_model(geometry.name, tensors, geometry.attention, geometry.n_expert_used)
    with open_model(model) as file:
        infos = [file.tensor_info(name) for name in file]
        for info in infos:
            if info.n_bytes is None:
                raise ModelFileError(
                    f"{info.path}: tensor {info.name!r} has a type of unknown size"
                )
        tensors = [(info.name, info.type_name, info.n_bytes, info.shape) for info in infos]
        key = f"{file.attention.architecture}.expert_used_count"
        n_expert_used = file.metadata.get(key, 0)
        if type(n_expert_used) is not int or not 0 <= n_expert_used < 2**32:
            raise ModelFileError(f"{file.paths[0]}: metadata {key!r} is no count")
        if file.attention.n_layer > len(tensors):
            raise ModelFileError(
                f"{file.paths[0]}: {file.attention.n_layer} layers by its metadata, {len(tensors)} tensors"
            )
        return _memory_model(str(model), tensors, file.attention, n_expert_used)


def _memory_model(name, tensors, attention, n_expert_used):
    n_layer = attention.n_layer
    rows_of = {tensor: shape[-2] for tensor, _, _, shape in tensors if len(shape) > 1}
    weights = [
        Weight(tensor, _kind(tensor), qtype, n_bytes, _layer(tensor, n_layer))
        for tensor, qtype, n_bytes, _ in tensors
    ]
    if (
        "output.weight" not in rows_of
    ):  # the embedding serves again, and is copied to the output's device
        weights += [
            Weight("output.weight", "output", weight.qtype, weight.n_bytes, OUTPUT)
            for weight in weights
            if weight.name == "token_embd.weight"
        ]
    heads = list(
        zip(*(_per_layer(n, n_layer) for n in (attention.n_head, attention.n_head_kv)), strict=True)
    )
    n_head, n_head_kv = max((layer for layer in heads if all(layer)), default=(0, 0))
    if not n_head:
        raise ValueError(f"{name}: no layer has attention heads")
    return ModelMemory(
        name=name,
        weights=tuple(weights),
        layers=tuple(
            _layer_memory(number, attention, *heads[number], rows_of, n_expert_used)
            for number in range(n_layer)
        ),
        context_length=attention.context_length,
        n_vocab=rows_of.get("output.weight", rows_of.get("token_embd.weight", 0)),
        n_embd=attention.n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        d_k=attention.d_k,
        d_v=attention.d_v,
    )


def _layer_memory(number, attention, n_head, n_head_kv, rows_of, n_expert_used):
    def rows(tensor):
        return rows_of.get(f"blk.{number}.{tensor}.weight", 0)

    n_embd = attention.n_embd
    if attention.is_mla:
        k_width, v_width = attention.d_k_latent, 0
    else:
        k_width, v_width = n_head_kv * attention.d_k, n_head_kv * attention.d_v
    experts = n_expert_used if rows("ffn_gate_exps") else 0
    stream = {"residual": n_embd, "normed": n_embd}
    return Layer(
        k_width=k_width,
        v_width=v_width,
        phases={
            "attention": {
                **stream,
                "compressed q": rows("attn_q_a"),
                "q": n_head * attention.d_k,
                "k, v": k_width + v_width,
                "kqv": n_head * attention.d_v,
            },
            "attention output": {"residual": n_embd, "kqv": n_head * attention.d_v, "out": n_embd},
            "feed-forward": {
                **stream,
                "gate, up": 2 * rows("ffn_gate"),
                "experts' gate, up": 2 * experts * rows("ffn_gate_exps"),
                "experts' out": experts * n_embd,
                "shared gate, up": 2 * rows("ffn_gate_shexp"),
                "out": n_embd,
            },
        },
    )


def _kind(tensor):
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
