"""Options that say where a model lies, spelt as llama.cpp spells them, as arguments of `quant.load`; and what lies where."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, NamedTuple

from .options import whole_numbers

if TYPE_CHECKING:
    from typing import Any

    from quant.models.model import Model

# One pair of -ot: a comma inside a regular expression such as "{1,2}" ends none.
_PAIR = re.compile(r"(.+?)=([A-Za-z]+:?[0-9]*)(?:,|$)")


def add_options(parser: Any, default_device: str | None = "cpu") -> None:
    """The options that `Placing.of` reads, to a parser or a group of one."""
    parser.add_argument(
        "--device",
        metavar="NAMES",
        default=default_device,
        help='"cpu", "cuda:0", or a list: "cuda:0,cuda:1" (default: cpu)',
    )
    parser.add_argument(
        "-ngl",
        "--n-gpu-layers",
        metavar="N",
        type=_count,
        help="the last N layers on the device, the others on the CPU; more than there are: the output too (default: all)",
    )
    parser.add_argument(
        "-ts",
        "--tensor-split",
        metavar="LIST",
        type=shares,
        help="layers a device, in proportion to a number for each, such as 3,1 (default: by their free memory)",
    )
    parser.add_argument(
        "--cpu-moe",
        "-cmoe",
        "--n-cpu-moe",
        metavar="N",
        nargs="?",
        type=_count,
        const=True,
        default=False,
        help="routed experts of all layers, or of the first N, on the CPU",
    )
    parser.add_argument(
        "--place",
        "-ot",
        "--override-tensor",
        metavar="REGEX=DEVICE",
        type=_pairs,
        action="extend",
        default=[],
        help=r"tensors by name, such as 'blk\.[0-3]\.ffn_.*_exps=cpu': experts, whole layers, the output; the first "
        "that matches counts",
    )


def _count(text):
    values = whole_numbers(0)(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is a list; give one number")
    return values[0]


def shares(text: str) -> list[float]:
    """An argparse type: numbers of at least 0, not all of them 0."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None
    if not all(0 <= share < 1e30 for share in found) or not sum(found):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of at least 0, not all 0")
    return found


def _pairs(text):
    pairs, at = [], 0
    while at < len(text) or not text:
        match = _PAIR.match(text, at)
        if match is None:
            raise argparse.ArgumentTypeError(
                f"{text[at:]!r}: expected REGEX=DEVICE, such as exps=cpu"
            )
        pairs.append((match[1], match[2]))
        at = match.end()
    return pairs


class Placing(NamedTuple):
    """Where a model lies, as `quant.load` takes it.

    Attributes
    ----------
    devices : tuple of str
    n_gpu_layers : int or None
    tensor_split : tuple of float or None
    cpu_moe : bool or int
    place : tuple of (str, str)
    """

    devices: tuple[str, ...] = ("cpu",)
    n_gpu_layers: int | None = None
    tensor_split: tuple[float, ...] | None = None
    cpu_moe: bool | int = False
    place: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace) -> Placing:
        """As a command line says it."""
        split = args.tensor_split
        return cls(
            tuple((args.device or "cpu").split(",")),
            args.n_gpu_layers,
            None if split is None else tuple(split),
            args.cpu_moe,
            tuple(args.place),
        )

    @property
    def is_cpu(self) -> bool:
        """Whether all is on the CPU."""
        return self.devices == ("cpu",)

    def options(self) -> dict[str, Any]:
        """Arguments of `quant.load`."""
        rest = self._asdict()
        names = rest.pop("devices")
        return {"device": names[0] if len(names) == 1 else list(names), **rest}

    def __str__(self) -> str:
        parts = [", ".join(self.devices)]
        if self.n_gpu_layers is not None:
            parts.append(f"-ngl {self.n_gpu_layers}")
        if self.tensor_split is not None:
            parts.append("-ts " + ",".join(f"{share:g}" for share in self.tensor_split))
        if self.cpu_moe is not False:
            parts.append("--cpu-moe" + ("" if self.cpu_moe is True else f" {self.cpu_moe}"))
        parts += [f"-ot {pattern}={device}" for pattern, device in self.place]
        return " ".join(parts)


def lines_of(net: Model) -> list[str]:
    """What lies where: a line for each device, where there are several, and one for the host's pinned memory."""
    from lowlevel.sizes import format_size

    if len(net.memory_of) == 1:
        return []
    lines = []
    for name, memory in net.memory_of.items():
        own = [str(part).removeprefix(f"{name}: ") for part in net.parts if part.device == name]
        hosted = (
            [layer for part in net.parts for layer in part.host_experts] if name == "cpu" else []
        )
        own += [f"experts of {len(hosted)} layer{'s' * (len(hosted) > 1)}"] if hosted else []
        weights = memory.weights_copied + memory.weights_made or memory.weights
        where = "" if memory.weights_copied else " where the file is mapped"
        lines.append(
            f"  {name}: {'; '.join(own)}: weights {format_size(weights)}{where}, K/V cache "
            f"{format_size(memory.kv_cache)}, compute {format_size(memory.compute)}"
        )
    lines.append(
        f"  pinned on the host, to load and for what crosses: {format_size(net.memory.host)}"
    )
    return lines
