"""``kqcap plan MODEL --vram``: the largest context, u-batch and amb that fit, by device."""

from __future__ import annotations

import argparse

from .options import MIB, UsageError, positive
from .pool.common import size_list, size_option

# The simulator plans as a GPU does, and needs none.
PLANNED_AS = {"cpu": "cpu", "cuda": "cudasim"}
WEIGHT_COLUMNS = ["class", "type", "tensors", "MiB", "share"]
FRONTIER_COLUMNS = ["u-batch", "largest context", "amb at most"]
DEVICE_COLUMNS = [
    "device",
    "layers",
    "weights",
    "K/V cache",
    "activations",
    "scratch",
    "in all",
    "of",
    "free",
]


def add_options(parser):
    group = parser.add_argument_group(
        "what fits (--vram)",
        "Weights by class and type, K/V cache and scratch, and the largest context, u-batch and -amb beside them. "
        "-c, -ub (a list: those to try), -amb, --kv-type (default here: f16), --method and -t fix what they name. "
        "Attention's scratch is planned to the byte, for --device; activations are an estimate.",
    )
    group.add_argument(
        "--vram",
        type=size_list,
        metavar="SIZE",
        help="memory a device; a comma list: of each device",
    )
    group.add_argument(
        "--n-gpu", type=positive, metavar="N", help="devices (default: as many as are named)"
    )
    group.add_argument(
        "--tensor-split",
        type=_shares,
        metavar="LIST",
        help="layers a device, in proportion; llama.cpp's rule (default: by --vram)",
    )
    group.add_argument(
        "--reserve",
        type=size_option,
        default=0,
        metavar="SIZE",
        help="memory of each device to leave alone",
    )
    group.add_argument(
        "--device",
        choices=PLANNED_AS,
        default="cpu",
        help="whose attention is planned: this machine's CPU, or a GPU's with -t multiprocessors "
        "(default: cpu; 132 multiprocessors)",
    )
    group.add_argument("--type", metavar="TYPE", help="of a named geometry's bulk (default: Q8_0)")
    group.add_argument("--mla", metavar="FORM", help="of a named geometry: split, fused or both")


def run(args):
    from quant.models.fit import UBATCHES, fit, weights_by_kind
    from quant.models.memory_model import memory_model

    if args.model is None:
        raise UsageError("--vram: name a model: a GGUF file, or a geometry such as deepseek-r1")
    vram = _devices(args)
    model = memory_model(args.model, args.type or "Q8_0", args.mla)
    amb = _one(args.attn_max_batch, "-amb")
    answer = fit(
        model,
        vram,
        shares=args.tensor_split,
        reserve=args.reserve,
        n_ctx=_one(args.n_prompt, "-c"),
        ubatches=args.ubatch_size or UBATCHES,
        amb=amb * MIB if amb else None,
        kv_type=_one(args.kv_type, "--kv-type") or "f16",
        method=_one(args.method, "--method") or "auto",
        n_threads=_one(args.threads, "-t"),
        device=PLANNED_AS[args.device],
    )
    weights = weights_by_kind(model)
    if args.json:
        from .tables import print_json

        print_json({"model": model.name, "weights": weights, **answer.to_dict()})
    else:
        _print(model, weights, answer)
    return int(not answer.fits)


def _print(model, weights, answer):
    from .tables import mib, note, print_table

    setting = answer.setting
    total = sum(row["n_bytes"] for row in weights)
    note(
        f"{model.name}: weights {mib(total)} MiB, {mib(answer.host_weights)} of them in the host's memory"
    )
    print_table(
        _columns(WEIGHT_COLUMNS, 2),
        [
            [row["kind"], row["qtype"], str(row["n_tensors"]), mib(row["n_bytes"]), f"{row['n_bytes'] / total:.1%}"]
            for row in weights
        ],
    )  # fmt: skip
    note(
        f"context {setting.n_ctx}, u-batch {setting.n_ubatch}, K/V {setting.kv_type}, "
        f"{'largest that fits' if answer.fits else 'DOES NOT FIT'}; MiB:"
    )
    rows = [_device_row(str(index), device) for index, device in enumerate(answer.devices)]
    if len(rows) > 1:
        rows.append(_sum_row(answer.devices))
    print_table(_columns(DEVICE_COLUMNS, 1), rows)
    print_table(
        _columns(FRONTIER_COLUMNS, 0),
        [
            [str(row["n_ubatch"]), str(row["n_ctx"] or "none"), mib(row["amb_most"], 0) if row["n_ctx"] else "-"]
            for row in answer.frontier
        ],
    )  # fmt: skip
    if answer.fits:
        note(
            f"-amb may be {mib(answer.amb_most, 0)} MiB at most; --method {setting.method} takes "
            f"{mib(answer.scratch_at_most)} of them"
        )
    else:
        short = [index for index, device in enumerate(answer.devices) if device.free < 0]
        note(
            f"does not fit: device(s) {', '.join(map(str, short))}; with this split every device needs "
            f"{mib(answer.smallest_vram)} MiB"
        )


def _device_row(name, device):
    from .tables import mib

    layers = str(len(device.layers)) + (" + output" if device.has_output else "")
    sizes = (
        device.weights,
        device.kv,
        device.activations,
        device.scratch,
        device.total,
        device.vram,
        device.free,
    )
    return [name, layers, *map(mib, sizes)]


def _sum_row(devices):
    from .tables import mib

    names = ("weights", "kv", "activations", "scratch", "total", "vram", "free")
    sums = [mib(sum(getattr(device, name) for device in devices)) for name in names]
    return ["all", str(sum(len(device.layers) for device in devices)), *sums]


def _columns(headings, n_left):
    return [(heading, "left" if i < n_left else "right") for i, heading in enumerate(headings)]


def _devices(args):
    """Bytes of each device."""
    vram, named = args.vram, [len(args.vram)] if len(args.vram) > 1 else []
    if args.tensor_split:
        named.append(len(args.tensor_split))
    if args.n_gpu:
        named.append(args.n_gpu)
    if len(set(named)) > 1:
        raise UsageError(f"--vram, --n-gpu, --tensor-split: different numbers of devices: {named}")
    return vram if len(vram) > 1 else vram * (named[0] if named else 1)


def _one(values, option):
    if values and len(values) > 1:
        raise UsageError(f"{option}: one value with --vram; got {len(values)}")
    return values[0] if values else None


def _shares(text):
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None
    if not all(0 <= share < 1e30 for share in shares) or not sum(shares):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of at least 0, not all 0")
    return shares
