"""What fits: weights, K/V cache and scratch on each device, and the largest context, u-batch and amb that do.

Pure arithmetic over a `ModelMemory`, which `quant.models.memory_model` makes from a model file or a named geometry, by
the rule of an engine (`quant.models.engines`): what it caches, and what it computes in.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from lowlevel.pool.budget_error import BudgetError

from ..formats import KV_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


# type of K and V: its name in plans, values that share a block, bytes of a block
KV_TYPES = {
    "f32": ("float32", 1, 4),
    "f16": ("float16", 1, 2),
    **{row.name.lower(): (row.name, row.block_weights, row.block_bytes) for row in KV_FORMATS},
}
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


class FeedForward(NamedTuple):
    """Widths of a layer's feed-forward part; 0: it has no such part.

    Attributes
    ----------
    dense, expert, shared : int
        Of the dense part, of one expert, and of the shared experts together.
    n_used : int
        Experts a token.
    """

    dense: int = 0
    expert: int = 0
    shared: int = 0
    n_used: int = 0


class Layer(NamedTuple):
    """What one layer keeps and works on.

    Attributes
    ----------
    n_head, n_head_kv, d_k, d_v : int
        Of its attention; with latent attention those of the decompressed heads. 0: it has none.
    window : int
        Keys that it sees; 0: all.
    latent, n_rot : int
        Width of the latent (`kv_lora_rank`) and of the RoPE part beside it; 0: no latent attention.
    feed_forward : FeedForward
    phases : dict of str to dict of str to int
        For each phase the tensors that live at once: name to values per token.
    """

    n_head: int
    n_head_kv: int
    d_k: int
    d_v: int
    window: int
    latent: int
    n_rot: int
    feed_forward: FeedForward
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
    mla_form : str
        How its tensors hold the decompression of latents: "split", "fused", "both"; "": none.
    notes : tuple of str
        What a reader of the numbers should know of the file.
    config : ModelConfig or None
        What its passes are planned by; None: they are not modelled.
    unmodelled : str
        Why they are not.
    passes : dict
        Plans of passes that were made so far.
    """

    name: str
    weights: tuple
    layers: tuple
    context_length: int
    n_vocab: int
    n_embd: int
    mla_form: str = ""
    notes: tuple = ()
    config: Any = None
    unmodelled: str = ""
    passes: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)


class Setting(NamedTuple):
    """What is chosen.

    Attributes
    ----------
    n_ctx, n_ubatch : int
        Tokens of context and u-batch.
    amb : int or None
        Bytes: the cap on attention's scratch, as the engine understands it; None: no cap.
    kv_type : str
        Of KV_TYPES.
    mla : int or None
        The form of latent attention, one of the engine's; None: its default.
    flash : bool
        Flash attention, where the engine can do without.
    method, n_threads, device
        kqcap's plan of attention: as for `plan_attention`.
    """

    n_ctx: int
    n_ubatch: int
    amb: int | None = None
    kv_type: str = "f16"
    mla: int | None = None
    flash: bool = True
    method: str = "auto"
    n_threads: int | None = None
    device: str = "cpu"


class Compute(NamedTuple):
    """Bytes of what lives at once while a u-batch passes: K*Q and its like, mask, ...

    Attributes
    ----------
    scratch : int
        K*Q, and what attention works in.
    mask : int
    decompressed : int
        K and V of latent attention, decompressed.
    logits : int
    activations : int
        The rest.
    inputs : int
        Positions of a u-batch, where they are counted by themselves.
    weights_made : int
        Of weights that the file has in another form.
    """

    scratch: int = 0
    mask: int = 0
    decompressed: int = 0
    logits: int = 0
    activations: int = 0
    inputs: int = 0
    weights_made: int = 0


class Rule(Protocol):
    """Whose memory is counted; those there are, are in `quant.models.engines`, which says what each method is."""

    @property
    def kv_bytes(self) -> Callable[[ModelMemory, int, Setting], int]: ...

    @property
    def compute(self) -> Callable[[ModelMemory, list[int], bool, Setting], Compute]: ...

    @property
    def amb_matters(self) -> Callable[[ModelMemory, Setting], bool]: ...

    def check(self, setting: Setting) -> None:
        """Raise ValueError where it does not run with a setting."""


class DeviceMemory(NamedTuple):
    """Bytes on one device.

    Attributes
    ----------
    layers : list of int
    has_output : bool
        The output norm and matrix are here.
    weights, kv : int
    compute : Compute
    reserve, vram : int
    """

    layers: list
    has_output: bool
    weights: int
    kv: int
    compute: Compute
    reserve: int
    vram: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + sum(self.compute) + self.reserve

    @property
    def free(self) -> int:
        """Below 0 where it does not fit."""
        return self.vram - self.total

    def to_dict(self) -> dict[str, Any]:
        data = {**self._asdict(), **self.compute._asdict(), "compute": sum(self.compute)}
        return {**data, "total": self.total, "free": self.free}


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
    amb_most : int or None
        The largest amb (whole MiB, in bytes) at which the setting fits, perhaps only with it; None where there is none,
        where the engine has no amb, where one was given, or where it changes nothing.
    frontier : list of dict
        For each u-batch: n_ubatch, n_ctx (the largest that fits, 0: none), amb_most.
    smallest_vram : int
        Bytes a device that would do for this setting, if all have the same.
    """

    setting: Setting
    fits: bool
    devices: list
    host_weights: int
    amb_most: int | None
    frontier: list
    smallest_vram: int

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "setting": self.setting._asdict(),
            "devices": [device.to_dict() for device in self.devices],
        }


def split_layers(n_layer: int, shares: list[int]) -> list[int]:
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


def row_bytes(width: int, kv_type: str) -> int:
    """Bytes of one cached row of `width` values."""
    _, block_values, block_bytes = KV_TYPES[kv_type]
    return -(-width // block_values) * block_bytes


def phase_bytes(layer: Layer, n_tokens: int, phase: str | None = None) -> int:
    """Bytes of float32 that live at once at most while a u-batch passes through a layer, or through one phase of it."""
    phases = layer.phases.values() if phase is None else [layer.phases.get(phase, {})]
    return max((4 * n_tokens * sum(tensors.values()) for tensors in phases), default=0)


def device_memory(
    model: ModelMemory,
    rule: Rule,
    setting: Setting,
    vram: list[int],
    shares: list[int],
    reserve: int = 0,
) -> list[DeviceMemory]:
    """What each device holds.

    Parameters
    ----------
    model : ModelMemory
    rule : Rule
        Whose memory is counted.
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
    ValueError
        The engine does not run so.
    BudgetError
        `setting.amb` is below the smallest tile.
    """
    rule.check(setting)
    device_of = split_layers(len(model.layers), shares)
    weights = [0] * len(vram)
    for weight in model.weights:
        if weight.layer != INPUT:
            weights[device_of[-1 if weight.layer == OUTPUT else weight.layer]] += weight.n_bytes
    devices = []
    for index, size in enumerate(vram):
        numbers = [number for number, device in enumerate(device_of[:-1]) if device == index]
        has_output = device_of[-1] == index
        devices.append(
            DeviceMemory(
                layers=numbers,
                has_output=has_output,
                weights=weights[index],
                kv=sum(rule.kv_bytes(model, number, setting) for number in numbers),
                compute=rule.compute(model, numbers, has_output, setting),
                reserve=reserve,
                vram=size,
            )
        )
    return devices


def fit(
    model: ModelMemory,
    rule: Rule,
    vram: list[int],
    *,
    shares: list[int] | None = None,
    reserve: int = 0,
    n_ctx: int | None = None,
    ubatches: list[int] | tuple[int, ...] = UBATCHES,
    **choices: Any,
) -> Fit:
    """The largest context, then u-batch, then amb, that fit; u-batches below 512 where no larger one fits.

    Parameters
    ----------
    model : ModelMemory
    rule : Rule
        Whose memory is counted.
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
        The rest of a `Setting` by name. (device "cudasim" plans attention as a GPU does.)

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
        return device_memory(model, rule, setting, vram, shares, reserve)

    frontier, best = [], None
    for n_ubatch in sorted(set(ubatches)):
        setting = Setting(n_ctx or 0, n_ubatch, **choices)
        context = _largest_context(model, setting, devices_at, n_ctx)
        row = {"n_ubatch": n_ubatch, "n_ctx": context, "amb_most": None}
        if context:
            setting = setting._replace(n_ctx=context)
            row["amb_most"] = _amb_most(model, rule, setting, devices_at)
            if best is None or context >= best.n_ctx or best.n_ubatch < GOOD_UBATCH <= n_ubatch:
                best = setting
        frontier.append(row)
    setting = best or Setting(n_ctx or CONTEXT_STEP, min(ubatches), **choices)
    devices = devices_at(setting)
    return Fit(
        setting=setting,
        fits=best is not None,
        devices=devices,
        host_weights=sum(weight.n_bytes for weight in model.weights if weight.layer == INPUT),
        amb_most=_amb_most(model, rule, setting, devices_at),
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


def _amb_most(model, rule, setting, devices_at):
    """The largest whole MiB, in bytes, with which it fits and that still changes something; None: see `Fit`."""
    if setting.amb is not None or not rule.amb_matters(model, setting):
        return None
    whole = 4 * max(layer.n_head for layer in model.layers) * setting.n_ubatch * setting.n_ctx

    def fits(amb):
        try:
            devices = devices_at(setting._replace(amb=amb * MIB))
        except BudgetError:  # below the smallest tile
            return None
        return all(device.free >= 0 for device in devices)

    low, high = 0, -(-whole // MIB)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle) is not False:
            low = middle
        else:
            high = middle - 1
    return low * MIB if low and fits(low) else None


def weights_by_kind(model: ModelMemory) -> list[dict[str, Any]]:
    """Tensors and bytes of each class and type, the most bytes first: kind, qtype, n_tensors, n_bytes."""
    sums: dict[tuple[str, str], list[int]] = {}
    for weight in model.weights:
        row = sums.setdefault((weight.kind, weight.qtype), [0, 0])
        row[0] += 1
        row[1] += weight.n_bytes
    rows = [
        {"kind": kind, "qtype": qtype, "n_tensors": n, "n_bytes": n_bytes}
        for (kind, qtype), (n, n_bytes) in sums.items()
    ]
    return sorted(rows, key=lambda row: (-row["n_bytes"], row["kind"]))
