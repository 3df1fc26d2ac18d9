"""What fits: weights, K/V cache and scratch on each device, and the largest context, u-batch and amb that do.

Pure arithmetic over a `ModelMemory`, which `quant.models.memory_model` makes from a model file or a named geometry.
Attention's scratch is that of `plan_attention`, to the byte. Activations are those of a straightforward float32
forward pass, by tensor; this version runs no whole model, so nothing has measured them.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from lowlevel.attention.plan import plan_attention
from lowlevel.pool.budget_error import BudgetError

# type of K and V: its name in plans, values that share a block, bytes of a block
KV_TYPES = {"f32": ("float32", 1, 4), "f16": ("float16", 1, 2), "q8_0": ("Q8_0", 32, 34)}
UBATCHES = (128, 256, 512, 1024, 2048, 4096)
# Smaller u-batches are slow: they are chosen only where no larger one fits at all.
GOOD_UBATCH = 512
CONTEXT_STEP = 256
MIB = 2**20
INPUT, OUTPUT = (
    "input",
    "output",
)  # in place of a layer: what comes before the layers, and after them


class Weight(NamedTuple):
    """A tensor: its class ("attention", "experts", ...), type, bytes, and layer (or INPUT, OUTPUT)."""

    name: str
    kind: str
    qtype: str
    n_bytes: int
    layer: int | str


class Layer(NamedTuple):
    """Values per token of what one layer keeps and works on.

    Attributes
    ----------
    k_width, v_width : int
        Of a row of the K/V cache; with latent attention the latent and 0.
    phases : dict of str to dict of str to int
        For each phase the tensors that live at once: name to values per token.
    """

    k_width: int
    v_width: int
    phases: dict


@dataclasses.dataclass(frozen=True)
class ModelMemory:
    """All that counts of a model.

    Attributes
    ----------
    name : str
    weights : tuple of Weight
    layers : tuple of Layer
    context_length, n_vocab, n_embd : int
    n_head, n_head_kv, d_k, d_v : int
        Of the layer whose attention takes most.
    """

    name: str
    weights: tuple
    layers: tuple
    context_length: int
    n_vocab: int
    n_embd: int
    n_head: int
    n_head_kv: int
    d_k: int
    d_v: int


class Setting(NamedTuple):
    """What is chosen: tokens of context and u-batch, the cap on attention's scratch (bytes, None: no cap), ..."""

    n_ctx: int
    n_ubatch: int
    amb: int | None = None
    kv_type: str = "f16"
    method: str = "auto"
    n_threads: int | None = None
    device: str = "cpu"


class DeviceMemory(NamedTuple):
    """Bytes on one device.

    Attributes
    ----------
    layers : list of int
    has_output : bool
        The output norm and matrix are here.
    weights, kv, activations, scratch, reserve, vram : int
    """

    layers: list
    has_output: bool
    weights: int
    kv: int
    activations: int
    scratch: int
    reserve: int
    vram: int

    @property
    def total(self):
        return self.weights + self.kv + self.activations + self.scratch + self.reserve

    @property
    def free(self):
        """Below 0 where it does not fit."""
        return self.vram - self.total

    def to_dict(self):
        return {**self._asdict(), "total": self.total, "free": self.free}


@dataclasses.dataclass(frozen=True)
class Fit:
    """The answer.

    Attributes
    ----------
    setting : Setting
        The largest that fits; where nothing does, the smallest that was tried.
    fits : bool
    devices : list of DeviceMemory
    host_weights : int
        Bytes of the tensors that stay in the host's memory: the token embedding.
    amb_most : int
        Whole MiB that attention may take at most on every device beside the rest; more than the whole K*Q is of no use.
    scratch_at_most : int
        What its plan takes at that cap.
    frontier : list of dict
        For each u-batch: n_ubatch, n_ctx (the largest that fits, 0: none), amb_most.
    smallest_vram : int
        Bytes a device that would do for this setting, if all have the same.
    """

    setting: Setting
    fits: bool
    devices: list
    host_weights: int
    amb_most: int
    scratch_at_most: int
    frontier: list
    smallest_vram: int

    def to_dict(self):
        return {
            **dataclasses.asdict(self),
            "setting": self.setting._asdict(),
            "devices": [device.to_dict() for device in self.devices],
        }


def split_layers(n_layer, shares):
    """The device of each layer, and at the end that of the output, as llama.cpp distributes them.

    Parameters
    ----------
    n_layer : int
    shares : sequence of float
        ``--tensor-split``: in proportion to these. A layer goes to the first device whose cumulative share exceeds
        its number over the number of layers, the output counted as one more.

    Returns
    -------
    list of int
    """
    shares = np.asarray(shares, np.float32)
    if shares.ndim != 1 or not shares.size or not np.isfinite(shares).all() or (shares < 0).any():
        raise ValueError(
            f"tensor_split: numbers of at least 0, one a device; got {shares.tolist()}"
        )
    if not shares.sum() > 0:
        raise ValueError("tensor_split: at least one number above 0")
    ends = np.cumsum(shares, dtype=np.float32)
    ends /= ends[-1]  # float32 as there: a layer on a border must fall on the same side
    parts = np.arange(n_layer + 1, dtype=np.float32) / np.float32(n_layer + 1)
    return np.searchsorted(ends, parts, side="right").tolist()


def kv_bytes(layer, n_ctx, kv_type):
    """Bytes of one layer's K/V cache."""
    _, block_values, block_bytes = KV_TYPES[kv_type]
    return sum(-(-width // block_values) * block_bytes * n_ctx for width in layer[:2])


def activation_bytes(layer, n_tokens):
    """Bytes of float32 that live at once at most while a u-batch passes through a layer."""
    return max(4 * n_tokens * sum(tensors.values()) for tensors in layer.phases.values())


def scratch_bytes(model, setting):
    """What attention takes from the pool, to the byte; BudgetError where `setting.amb` is too little."""
    plan = plan_attention(
        n_head=model.n_head,
        n_head_kv=model.n_head_kv,
        n_tokens=min(setting.n_ubatch, setting.n_ctx),
        n_kv=setting.n_ctx,
        d_k=model.d_k,
        d_v=model.d_v,
        kv_dtype=KV_TYPES[setting.kv_type][0],
        budget=setting.amb,
        method=setting.method,
        n_threads=setting.n_threads,
        device=setting.device,
    )
    return plan.scratch_bytes


def device_memory(model, setting, vram, shares, reserve=0):
    """What each device holds.

    Parameters
    ----------
    model : ModelMemory
    setting : Setting
    vram : sequence of int
        Bytes of each device.
    shares : sequence of float
        See `split_layers`.
    reserve : int
        Bytes of each device to leave alone.

    Returns
    -------
    list of DeviceMemory

    Raises
    ------
    BudgetError
        `setting.amb` is below the smallest tile.
    """
    device_of = split_layers(len(model.layers), shares)
    n_tokens = min(setting.n_ubatch, setting.n_ctx)
    scratch = scratch_bytes(model, setting)
    weights = [0] * len(vram)
    for weight in model.weights:
        if weight.layer != INPUT:
            weights[device_of[-1 if weight.layer == OUTPUT else weight.layer]] += weight.n_bytes
    devices = []
    for index, size in enumerate(vram):
        numbers = [number for number, device in enumerate(device_of[:-1]) if device == index]
        layers = [model.layers[number] for number in numbers]
        has_output = device_of[-1] == index
        phases = [activation_bytes(layer, n_tokens) for layer in layers]
        if has_output:  # the last token's logits; the hidden state and its norm
            phases.append(4 * (model.n_vocab + 2 * model.n_embd * n_tokens))
        devices.append(
            DeviceMemory(
                layers=numbers,
                has_output=has_output,
                weights=weights[index],
                kv=sum(kv_bytes(layer, setting.n_ctx, setting.kv_type) for layer in layers),
                activations=max(phases, default=0),
                scratch=scratch if layers else 0,
                reserve=reserve,
                vram=size,
            )
        )
    return devices


def fit(model, vram, *, shares=None, reserve=0, n_ctx=None, ubatches=UBATCHES, **choices):
    """The largest context, then u-batch, then amb, that fit; u-batches below 512 where no larger one fits.

    Parameters
    ----------
    model : ModelMemory
    vram : sequence of int
        Bytes of each device.
    shares : sequence of float, optional
        None: in proportion to `vram`.
    reserve : int
        Bytes of each device to leave alone (contexts of drivers, a display).
    n_ctx : int, optional
        Just this context; None: up to the model's own.
    ubatches : sequence of int
        The u-batches to try.
    **choices
        amb, kv_type, method, n_threads and device (of attention: "cpu", or "cudasim", which plans as a GPU does) as in
        `Setting`.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError, BudgetError
        Arguments that make no sense; an amb that is below the smallest tile whatever the context.
    """
    vram = list(vram)
    shares = vram if shares is None else list(shares)
    if len(shares) != len(vram):
        raise ValueError(
            f"tensor_split: {len(vram)} devices need as many numbers; got {len(shares)}"
        )

    def devices_at(setting):
        return device_memory(model, setting, vram, shares, reserve)

    frontier, best = [], None
    for n_ubatch in sorted(set(ubatches)):
        setting = Setting(n_ctx or 0, n_ubatch, **choices)
        context = _largest_context(model, setting, devices_at, n_ctx)
        row = {"n_ubatch": n_ubatch, "n_ctx": context, "amb_most": 0}
        if context:
            setting = setting._replace(n_ctx=context)
            row["amb_most"] = _amb_most(model, setting, devices_at(setting))
            if best is None or context >= best.n_ctx or best.n_ubatch < GOOD_UBATCH <= n_ubatch:
                best = setting
        frontier.append(row)
    setting = best or Setting(n_ctx or CONTEXT_STEP, min(ubatches), **choices)
    devices = devices_at(setting)
    amb_most = _amb_most(model, setting, devices) if best else 0
    return Fit(
        setting=setting,
        fits=best is not None,
        devices=devices,
        host_weights=sum(weight.n_bytes for weight in model.weights if weight.layer == INPUT),
        amb_most=amb_most,
        scratch_at_most=scratch_bytes(model, setting._replace(amb=amb_most)) if amb_most else 0,
        frontier=frontier,
        smallest_vram=max(device.total for device in devices),
    )


def _largest_context(model, setting, devices_at, n_ctx):
    """0 where none fits."""

    def fits(context):
        try:
            devices = devices_at(setting._replace(n_ctx=context))
        except BudgetError:
            return False
        return all(device.free >= 0 for device in devices)

    if n_ctx is not None:
        return n_ctx if fits(n_ctx) else 0
    if fits(model.context_length):
        return model.context_length
    low, high = 0, -(-model.context_length // CONTEXT_STEP)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * CONTEXT_STEP):
            low = middle
        else:
            high = middle
    return low * CONTEXT_STEP


def _amb_most(model, setting, devices):
    """Whole MiB in bytes, as -amb takes them."""
    room = min(device.free + device.scratch for device in devices if device.layers)
    whole = 4 * model.n_head * min(setting.n_ubatch, setting.n_ctx) * setting.n_ctx
    return min(room // MIB, -(-whole // MIB)) * MIB


def weights_by_kind(model):
    """Tensors and bytes of each class and type, the most bytes first: kind, qtype, n_tensors, n_bytes."""
    rows = {}
    for weight in model.weights:
        row = rows.setdefault((weight.kind, weight.qtype), [0, 0])
        row[0] += 1
        row[1] += weight.n_bytes
    rows = [
        {"kind": kind, "qtype": qtype, "n_tensors": n, "n_bytes": n_bytes}
        for (kind, qtype), (n, n_bytes) in rows.items()
    ]
    return sorted(rows, key=lambda row: (-row["n_bytes"], row["kind"]))
