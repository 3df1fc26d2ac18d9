"""Whose memory a plan counts: the rules of kqcap, ik_llama.cpp and llama.cpp for K/V cache and compute buffers.

Of the other two the K/V cache is exact. Their compute buffers come out of an allocator that places tensors
in the order of a graph; here the tensors that live at once at the peak are added up, so that these sizes are
estimates: `MEASURED` in tests/unit/test_engines.py has what both really took, and how far this is from it.
Read and measured at llama.cpp b11739 and ik_llama.cpp 8337e4cd3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from . import kqcap_memory
from .fit import KV_TYPES, MIB, Compute, row_bytes
from .ik_rule import ik_steps

if TYPE_CHECKING:
    from quant.models.fit import ModelMemory, Setting


# llama.cpp's fit keeps so much of every device free: the driver's context, code, buffers that grow.
MARGIN = 1024 * MIB
CELLS = 256  # llama.cpp rounds the rows of its caches up to so many
# Forms of latent attention: what is cached, and what attention reads.
HEADS, ABSORBED, DECOMPRESSED, BY_FLOPS = "heads", "absorbed", "decompressed", "by FLOPs"


class LatentForm(NamedTuple):
    """A form of latent attention: its name, and one sentence."""

    name: str
    text: str


FORMS = {
    HEADS: LatentForm(HEADS, "K and V of all heads are cached"),
    ABSORBED: LatentForm(ABSORBED, "latents are cached, and attention reads them as one K/V head"),
    DECOMPRESSED: LatentForm(
        DECOMPRESSED, "latents are cached, and K and V are decompressed for attention"
    ),
    BY_FLOPS: LatentForm(
        BY_FLOPS,
        "latents are cached; each u-batch reads them as they are or decompressed, whichever takes fewer FLOPs",
    ),
}


@dataclasses.dataclass(frozen=True)
class Engine:
    """The rule of one engine.

    Attributes
    ----------
    name : str
        As ``--engine`` takes it.
    counted : callable
        (model, setting) -> one sentence for the reader: what is counted, and how sure it is.
    mla : dict of int to str
        Values of ``-mla`` and the form (of FORMS) that a prompt is worked on in; empty: the file decides.
    default_mla : int or None
    options : frozenset of str
        Which of "amb", "flash", "method" it has.
    kv_bytes : callable
        (model, number, setting) -> bytes of one layer's K/V cache.
    compute : callable
        (model, numbers, has_output, setting) -> `Compute` of a device with the layers of these numbers.
    amb_matters : callable
        (model, setting) -> whether another amb would take other memory.
    """

    name: str
    counted: Callable
    mla: dict
    default_mla: int | None
    options: frozenset
    kv_bytes: Callable
    compute: Callable
    amb_matters: Callable

    def form(self, model: ModelMemory, setting: Setting) -> str:
        """The form of FORMS that the prompt of a latent model is worked on in; "" for another model."""
        if not any(layer.latent for layer in model.layers):
            return ""
        if not self.mla:
            if model.mla_form == "both":
                raise ValueError(
                    f"{model.name}: {self.name} loads no file with attn_k_b beside attn_kv_b; "
                    "--engine ik does"
                )
            return ABSORBED if model.mla_form == "split" else HEADS
        return self.mla[self.default_mla if setting.mla is None else setting.mla]

    def check(self, setting: Setting) -> None:
        """Raise ValueError where the engine does not run with a setting."""
        _, block_values, _ = KV_TYPES[setting.kv_type]
        if "flash" in self.options and not setting.flash and block_values > 1:
            raise ValueError(
                f"kv_type {setting.kv_type}: {self.name} caches quantised V with flash attention only; "
                "f16 works without"
            )


def _kinds(layers):
    """One of each kind of layers with attention: sizes are per layer, and so equal for a kind."""
    found = {}
    for layer in layers:
        if layer.n_head_kv:
            found.setdefault(layer[:-1], layer)
    return list(found.values())


def _rows(layer, setting, cells=1):
    """Rows that a layer's cache has: the context, or a window and one u-batch."""
    rows = setting.n_ctx
    if layer.window:
        rows = min(rows, layer.window + min(setting.n_ubatch, setting.n_ctx))
    return -(-rows // cells) * cells


def _heads_bytes(layer, rows, kv_type):
    return rows * sum(row_bytes(layer.n_head_kv * d, kv_type) for d in (layer.d_k, layer.d_v))


def _latent_bytes(layer, rows, kv_type):
    return rows * row_bytes(layer.latent + layer.n_rot, kv_type)


class _Widths(NamedTuple):
    """float32 bytes of the tensors of one u-batch in one layer."""

    stream: int  # the residual
    q: int
    kv: int  # k and v of this u-batch
    kqv: int
    latent_q: int  # absorbed queries, and what comes out: 0 in other forms
    latent_kqv: int


def _widths(model, layer, setting, absorbed):
    n = 4 * min(setting.n_ubatch, setting.n_ctx)
    return _Widths(
        stream=n * model.n_embd,
        q=n * layer.n_head * layer.d_k,
        kv=n * layer.n_head_kv * (layer.d_k + layer.d_v),
        kqv=n * layer.n_head * layer.d_v,
        latent_q=n * layer.n_head * (layer.latent + layer.n_rot) if absorbed else 0,
        latent_kqv=n * layer.n_head * layer.latent if absorbed else 0,
    )


def _largest(phases):
    return max(phases, key=sum, default=Compute())


# kqcap


def _kqcap_compute(model, numbers, has_output, setting):
    absorbed = KQCAP.form(model, setting) != DECOMPRESSED
    return kqcap_memory.compute(model, numbers, has_output, setting, absorbed)


# llama.cpp


def _llama_kv_bytes(model, number, setting):
    layer = model.layers[number]
    rows = _rows(layer, setting, CELLS)
    if layer.latent and LLAMA_CPP.form(model, setting) != HEADS:
        return _latent_bytes(layer, rows, setting.kv_type)
    return _heads_bytes(layer, rows, setting.kv_type)


def _llama_masks(layers, setting):
    """One mask for the layers that see all keys, and one for those with a window."""
    masks = {(bool(layer.window), _rows(layer, setting, CELLS)) for layer in _kinds(layers)}
    return (
        sum(rows for _, rows in masks)
        * min(setting.n_ubatch, setting.n_ctx)
        * (2 if setting.flash else 4)
    )


def _llama_compute(model, numbers, has_output, setting):
    layers = [model.layers[number] for number in numbers]
    n_tokens = min(setting.n_ubatch, setting.n_ctx)
    absorbed = LLAMA_CPP.form(model, setting) == ABSORBED
    mask = _llama_masks(layers, setting)
    phases = [
        Compute(mask=mask, activations=4 * n_tokens * _llama_feed_forward(model, layer))
        for layer in layers
    ]
    for layer in _kinds(layers):
        w = _widths(model, layer, setting, absorbed and layer.latent)
        rows = _rows(layer, setting, CELLS)
        own = w.latent_q + w.latent_kqv if w.latent_q else w.kv + w.kqv
        phases.append(
            Compute(
                scratch=0 if setting.flash else 4 * layer.n_head * n_tokens * rows,
                mask=mask,
                activations=3 * w.stream + 2 * w.q + own,
            )
        )
    if has_output:
        stream = 4 * n_tokens * model.n_embd
        logits = 4 * n_tokens * model.n_vocab
        phases.append(Compute(mask=mask, logits=logits, activations=6 * stream))
    return _largest(phases)


def _llama_feed_forward(model, layer):
    """Values a token: gate, up and their product; the experts' results where they do not fit where the first two lay."""
    ff = layer.feed_forward
    results = ff.n_used * model.n_embd
    widths = [3 * ff.dense, 3 * ff.n_used * ff.expert, results + 3 * ff.shared]
    if results > 2 * ff.n_used * ff.expert:
        widths[1] += results
    return 5 * model.n_embd + max(widths)


# ik_llama.cpp


def _ik_rows(setting):
    """All layers keep the whole context, those with a window too."""
    cells = CELLS if setting.flash else 32
    return -(-setting.n_ctx // cells) * cells


def _ik_kv_bytes(model, number, setting):
    layer = model.layers[number]
    rows = _ik_rows(setting)
    form = IK.form(model, setting)
    if not layer.latent or form == HEADS:
        return _heads_bytes(layer, rows, setting.kv_type)
    transposed = form == ABSORBED and not setting.flash  # a second, transposed copy of the latents
    return _latent_bytes(layer, rows, setting.kv_type) + transposed * rows * row_bytes(
        layer.latent, setting.kv_type
    )


def _ik_compute(model, numbers, has_output, setting):
    layers = [model.layers[number] for number in numbers]
    form = IK.form(model, setting)
    n_tokens = min(setting.n_ubatch, setting.n_ctx)
    mask = _ik_rows(setting) * n_tokens * (2 if setting.flash else 4)
    phases = [
        Compute(mask=mask, activations=4 * n_tokens * _ik_feed_forward(model, layer))
        for layer in layers
    ]
    for layer in _kinds(layers):
        phases.append(_ik_attention(model, layer, form, setting)._replace(mask=mask))
    if has_output:
        logits = 4 * n_tokens * model.n_vocab
        phases.append(Compute(logits=logits, activations=8 * n_tokens * model.n_embd))
    return _largest(phases)


def _ik_feed_forward(model, layer):
    """Values a token: gate and up are one operation, of which only the product is kept."""
    ff = layer.feed_forward
    results = ff.n_used * model.n_embd
    experts = results + max(ff.n_used * ff.expert, ff.shared)
    return 3 * model.n_embd + max(ff.dense, experts)


def _ik_attention(model, layer, form, setting):
    """What lives while one layer attends, without the mask."""
    form = form if layer.latent else HEADS
    rows = _ik_rows(setting)
    w = _widths(model, layer, setting, form == ABSORBED)
    activations = 3 * w.stream + 2 * w.q + w.latent_q + w.latent_kqv
    scratch = decompressed = 0
    heads = _ik_step_heads(layer, form, setting)
    if not setting.flash:
        scratch = 4 * heads * rows * min(setting.n_ubatch, setting.n_ctx)
    if form == DECOMPRESSED and setting.flash:
        # a group's K and V in float32, and again in the cache's type
        decompressed = heads * rows * (6 * (layer.d_k - layer.n_rot + layer.d_v) + 2 * layer.n_rot)
        activations += 0 if heads == layer.n_head else w.kqv
    elif form == DECOMPRESSED:
        # head by head, but the queries and the results of all heads are there several times
        decompressed = min(heads, 2) * rows * 2 * (layer.d_k + layer.d_v)
        activations = 6 * w.stream + 5 * (w.q + w.kqv)
    return Compute(scratch=scratch, decompressed=decompressed, activations=activations)


def _ik_step_heads(layer, form, setting):
    """Heads that are worked on at once."""
    amb = (setting.amb or 0) // MIB
    if setting.flash:
        heads = layer.n_head
        if form == DECOMPRESSED and amb:  # halved until their K and V in float32 fit
            a_head = 4 * _ik_rows(setting) * (layer.d_k - layer.n_rot + layer.d_v)
            while heads % 2 == 0 and heads * a_head > amb * MIB:
                heads //= 2
        return heads
    return ik_steps(
        n_head=layer.n_head,
        n_head_kv=layer.n_head_kv,
        n_tokens=min(setting.n_ubatch, setting.n_ctx),
        n_kv=_ik_rows(setting),
        amb_mib=amb,
        mla=form != HEADS,
    ).heads


def _ik_amb_matters(model, setting):
    form = IK.form(model, setting)
    least, none = (setting._replace(amb=amb) for amb in (128 * MIB, None))
    return any(
        _ik_step_heads(layer, form if layer.latent else HEADS, least)
        != _ik_step_heads(layer, form if layer.latent else HEADS, none)
        for layer in _kinds(model.layers)
    )


_ESTIMATED = "the compute buffer is an estimate, its logits are those of a whole u-batch"


def _ik_counted(model, setting):
    windows = any(layer.window for layer in model.layers)
    rest = "; windowed layers cache the whole context there" if windows else ""
    return f"ik_llama.cpp's: {_ESTIMATED}{rest}"


KQCAP = Engine(
    name="kqcap",
    counted=kqcap_memory.counted,
    mla={0: DECOMPRESSED, 1: ABSORBED, 2: ABSORBED, 3: BY_FLOPS},
    default_mla=3,
    options=frozenset(("amb", "method")),
    kv_bytes=kqcap_memory.kv_bytes,
    compute=_kqcap_compute,
    amb_matters=lambda model, setting: setting.method == "steps",
)
IK = Engine(
    name="ik",
    counted=_ik_counted,
    mla={0: HEADS, 1: ABSORBED, 2: DECOMPRESSED, 3: DECOMPRESSED},
    default_mla=3,
    options=frozenset(("amb", "flash")),
    kv_bytes=_ik_kv_bytes,
    compute=_ik_compute,
    amb_matters=_ik_amb_matters,
)
LLAMA_CPP = Engine(
    name="llama.cpp",
    counted=lambda model, setting: f"llama.cpp's: {_ESTIMATED}",
    mla={},
    default_mla=None,
    options=frozenset(("flash",)),
    kv_bytes=_llama_kv_bytes,
    compute=_llama_compute,
    amb_matters=lambda model, setting: False,
)
ENGINES = {engine.name: engine for engine in (KQCAP, IK, LLAMA_CPP)}
