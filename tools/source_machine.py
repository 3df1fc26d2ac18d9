"""The machine of the source, 15 GPUs of 24 GiB with DeepSeek-R1 at 163840 tokens, against our own plan of it.

    python -m tools.source_machine pr237-reduce-compute-buffers.txt -o occupancy.png

Line by line what the log of ik_llama.cpp in that file says of each device, and what kqcap plans for the same layers;
then how busy the devices of a pipeline are, also as a picture: which device works on which u-batch, and when.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from .options import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quant.models.occupancy import Occupancy

VRAM = 24 * 2**30
N_CTX = 163840
# Of the log's command line.
SHARES = (37, 25, 25, 25, 24.5, 24, 24, 24, 24, 25, 24, 25, 24, 24.5, 31)
N_UBATCH, AMB = 1024, 1024 * MIB
# What a 3090 reaches, to weigh work against hops: half of its 71 TFLOP/s, and PCIe 4.0 by 16 lanes.
FLOPS, LINK = 35e12, 20e9
# Short enough that single u-batches can be seen.
DRAWN_TOKENS = 65536
# Of u-batches by turns.
TWO_TONES = ("#1845fb", "#86c8dd")
# Devices plan as the simulator does.
DEVICE = "cudasim"
KINDS = {
    "weights": r"llm_load_tensors: +CUDA(\d+) buffer size = +([0-9.]+) MiB",
    "kv": r"llama_kv_cache_init: +CUDA(\d+) KV buffer size = +([0-9.]+) MiB",
    "compute": r"llama_new_context_with_model: +CUDA(\d+) compute buffer size = +([0-9.]+) MiB",
}


def read_log(text: str) -> dict[str, list[float]]:
    """MiB of each device by what they are for.

    Raises
    ------
    ValueError
        A log without these lines, or of another number of devices.
    """
    found = {}
    for kind, pattern in KINDS.items():
        by_device = {int(number): float(size) for number, size in re.findall(pattern, text)}
        if sorted(by_device) != list(range(len(SHARES))):
            raise ValueError(f"log: no {kind} lines of {len(SHARES)} devices in it")
        found[kind] = [by_device[index] for index in range(len(SHARES))]
    return found


def planned() -> list[dict[str, Any]]:
    """Our bytes of each device for the same split."""
    from quant.models.engines import ENGINES
    from quant.models.fit import Setting, device_memory
    from quant.models.memory_model import memory_model

    model = memory_model("deepseek-r1", "Q2_K", None)
    setting = Setting(N_CTX, N_UBATCH, AMB, device=DEVICE)
    shares: list[Any] = list(SHARES)
    found = device_memory(model, ENGINES["kqcap"], setting, [VRAM] * len(shares), shares)
    return [
        {
            "layers": each.layers,
            "weights": each.weights,
            "kv": each.kv,
            "compute": sum(each.compute),
            "total": each.total,
        }
        for each in found
    ]


class Prompts:
    """Work of prompts on R1's layers, by u-batch.

    Parameters
    ----------
    n_ubatch : int
    """

    def __init__(self, n_ubatch: int) -> None:
        from quant.models.config import ModelConfig
        from quant.models.named_geometries import named_geometry
        from quant.models.occupancy import layer_flops
        from quant.models.planned_file import PlannedFile

        file: Any = PlannedFile(named_geometry("deepseek-r1"), "Q2_K")
        config = ModelConfig.from_file(file)
        choices = _choices(config, n_ubatch)
        self.n_ubatch, self.hop = n_ubatch, 4 * n_ubatch * config.n_embd / LINK
        # Work grows with the keys by a straight line: two points say all.
        self._ends = [layer_flops(config, choices, n_ubatch, n_kv) for n_kv in (n_ubatch, N_CTX)]

    def work(self, n_kv: int) -> list[float]:
        """Seconds of each layer, and of the output, of a u-batch that ends at `n_kv`."""
        share = (n_kv - self.n_ubatch) / (N_CTX - self.n_ubatch)
        return [(low + share * (high - low)) / FLOPS for low, high in zip(*self._ends, strict=True)]

    def occupancy(self, layers: Sequence[Sequence[int]], n_tokens: int) -> Occupancy:
        """Of a prompt of so many tokens, its u-batches one behind the other through the devices' layers."""
        from quant.models.occupancy import pipeline

        return pipeline(self.of_devices(layers, n_tokens), self.hop)

    def of_devices(self, layers: Sequence[Sequence[int]], n_tokens: int) -> list[list[float]]:
        """Seconds of each u-batch of a prompt on each device."""
        batches = map(self.work, range(self.n_ubatch, n_tokens + 1, self.n_ubatch))
        return [[sum(work[i] for i in own) for own in layers] for work in batches]

    def balanced(self, n_devices: int) -> list[list[int]]:
        """Layers of each device by the work of a u-batch at half the context."""
        from quant.models.occupancy import split_by_work

        return split_by_work(self.work(N_CTX // 2)[:-1], n_devices)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.source_machine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", metavar="LOG", help="the source's text")
    parser.add_argument("-o", metavar="OUT.png", dest="picture", help="draw the pipeline as well")
    args = parser.parse_args(argv)
    try:
        with open(args.log, encoding="utf-8") as file:
            log = read_log(file.read())
        ours = planned()
        _print(log, ours)
        if args.picture:
            draw([own["layers"] for own in ours], args.picture)
    except (OSError, ValueError, ImportError) as error:
        print(f"source_machine: error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(layers: Sequence[Sequence[int]], path: str, n_tokens: int = DRAWN_TOKENS) -> None:
    """Write a picture of devices' u-batches over time, by these layers and by equal work.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    OSError
    """
    from lowlevel.extras import pip_install
    from quant.models.occupancy import begins, pipeline

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"-o: {error}; {pip_install('plot')}") from None
    prompts = Prompts(N_UBATCH)
    splits = {"the source's split": layers, "split by work": prompts.balanced(len(layers))}
    figure = Figure(figsize=(11, 8), layout="constrained")
    for axes, (name, own) in zip(figure.subplots(2, sharex=True), splits.items(), strict=True):
        work = prompts.of_devices(own, n_tokens)
        starts, found = begins(work, prompts.hop), pipeline(work, prompts.hop)
        for device in range(len(own)):
            bars = [(row[device], spent[device]) for row, spent in zip(starts, work, strict=True)]
            axes.broken_barh(bars, (device - 0.4, 0.8), facecolors=TWO_TONES)
        axes.set(ylabel="device", yticks=range(len(own)), ylim=(len(own) - 0.4, -0.6))
        axes.set_title(
            f"{name}: {found.bubble:.0%} idle, {found.speedup:.1f} times one device at a time",
            fontsize=10,
        )
    axes.set_xlabel(f"seconds at {FLOPS / 1e12:.0f} TFLOP/s a device")
    figure.suptitle(f"DeepSeek-R1, prompt of {n_tokens} in u-batches of {N_UBATCH}: who works when")
    figure.savefig(path, format="png", dpi=100)


def _print(log, ours):
    from .tables import note, print_table

    kinds = list(KINDS)
    headings = [
        "device",
        "layers",
        *(f"{kind} {who}" for kind in kinds for who in ("log", "kqcap")),
    ]
    rows = []
    for index, own in enumerate(ours):
        row = [str(index), str(len(own["layers"]))]
        for kind in kinds:
            row += [f"{log[kind][index]:.0f}", f"{own[kind] / MIB:.0f}"]
        total = sum(log[kind][index] for kind in kinds)
        rows.append([*row, f"{total:.0f}", f"{own['total'] / MIB:.0f}"])
    headings += ["in all log", "kqcap"]
    print_table([(heading, "right") for heading in headings], rows)
    sums = {kind: (sum(log[kind]), sum(own[kind] for own in ours) / MIB) for kind in kinds}
    for kind, (theirs, own) in sums.items():
        note(f"{kind}: log {theirs:.0f} MiB, kqcap {own:.0f} MiB")
    largest = max(own["total"] for own in ours)
    fits = "fits" if largest <= VRAM else "DOES NOT FIT"
    note(f"the fullest device: {largest / MIB:.0f} of {VRAM // MIB} MiB: it {fits}")
    layers = [own["layers"] for own in ours]
    for n_ubatch in (512, N_UBATCH, 2048):
        prompts = Prompts(n_ubatch)
        splits = {"this split": layers, "split by work": prompts.balanced(len(layers))}
        for n_tokens in (16384, N_CTX):
            for name, own in splits.items():
                found = prompts.occupancy(own, n_tokens)
                note(
                    f"prompt of {n_tokens}, u-batch {n_ubatch}, {name}: {found.bubble:.1%} idle, "
                    f"{found.speedup:.1f} times one device at a time"
                )
        if n_ubatch == N_UBATCH:
            for name, own in splits.items():
                note(_picture(name, own, prompts.occupancy(own, N_CTX)))


def _picture(name, layers, found):
    """Each device's share of the time that it works, as a bar."""
    lines = [
        f"busy, {name}, prompt of {N_CTX} ({found.seconds:.0f} s at {FLOPS / 1e12:.0f} TFLOP/s):"
    ]
    for index, (own, busy) in enumerate(zip(layers, found.busy, strict=True)):
        share = busy / found.seconds
        lines.append(f"  {index:2d} {len(own)} layers {'#' * round(50 * share):50s} {share:.0%}")
    return "\n".join(lines)


def _choices(config, n_ubatch):
    from lowlevel import devices
    from quant.models.model import choices_of

    return choices_of(
        config,
        devices.get(DEVICE),
        n_ctx=N_CTX,
        n_ubatch=n_ubatch,
        amb=AMB,
        kv_type="f16",
        mla="auto",
        exact=False,
        method="auto",
        n_threads=None,
    )


if __name__ == "__main__":
    sys.exit(main())
