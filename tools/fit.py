"""``kqcap plan MODEL --vram``: the largest context, u-batch and amb that fit, by device."""

from __future__ import annotations

import argparse

from .options import MIB, UsageError, memory_list, memory_size, positive
from .placing import shares

# The simulator plans as a GPU does, and needs none.
PLANNED_AS = {"cpu": "cpu", "cuda": "cudasim"}
WEIGHT_COLUMNS = ["class", "type", "tensors", "MiB", "share"]
FRONTIER_COLUMNS = ["u-batch", "largest context"]
# Headings of what a device's memory goes to; those that no device has are left out.
PARTS = {
    "weights": "weights",
    "kv": "K/V cache",
    "scratch": "scratch",
    "mask": "mask",
    "decompressed": "K, V decompressed",
    "logits": "logits",
    "activations": "activations",
    "inputs": "positions",
    "weights_made": "weights made",
    "reserve": "margin",
}
DEFAULT_ENGINE = "kqcap"
SUMS = {"total": "in all", "vram": "of", "free": "free"}
ENGINES = ("kqcap", "ik", "llama.cpp")


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what fits (--vram)",
        "Weights by class and type, K/V cache and compute, and the largest context and u-batch beside them, by the "
        "rule of the engine that is named. -c, -ub (a list: those to try), -amb, -mla, --kv-type (default here: f16), "
        "--method and -t fix what they name. Sizes: a plain number is MiB, as in llama.cpp's options; 24G and 24GiB "
        "are binary, 24GB is decimal.",
    )
    group.add_argument(
        "--vram",
        type=memory_list,
        metavar="SIZE",
        help="memory a device, such as 24GiB; a comma list: of each device",
    )
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default=DEFAULT_ENGINE,
        help="whose memory is counted: kqcap's, ik_llama.cpp's or llama.cpp's (default: kqcap)",
    )
    group.add_argument(
        "-fa",
        "--flash-attn",
        choices=("0", "1"),
        help="ik, llama.cpp: flash attention (default: 1)",
    )
    group.add_argument(
        "--n-gpu", type=positive, metavar="N", help="devices (default: as many as are named)"
    )
    group.add_argument(
        "--tensor-split",
        type=shares,
        metavar="LIST",
        help="layers a device, in proportion; llama.cpp's rule (default: by --vram)",
    )
    group.add_argument(
        "--reserve",
        type=memory_size,
        metavar="SIZE",
        help="memory of each device to leave alone (default: 1024 MiB, llama.cpp's margin)",
    )
    group.add_argument(
        "--device",
        choices=PLANNED_AS,
        help="kqcap: whose passes are counted, a GPU's (of -t multiprocessors: an estimate), or this "
        "machine's CPU (default: cuda)",
    )
    group.add_argument("--type", metavar="TYPE", help="of a named geometry's bulk (default: Q8_0)")
    group.add_argument("--mla", metavar="FORM", help="of a named geometry: split, fused or both")


def refuse_without_vram(args: argparse.Namespace) -> None:
    """Raise UsageError for an option that would be left out of account where nothing is to fit."""
    given = {
        "--engine": args.engine != DEFAULT_ENGINE,
        "--flash-attn": args.flash_attn is not None,
        "--n-gpu": args.n_gpu is not None,
        "--tensor-split": args.tensor_split is not None,
        "--reserve": args.reserve is not None,
        "--device": args.device is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise UsageError(f"{option}: of what fits a memory; say which by --vram")


def run(args: argparse.Namespace) -> int:
    from quant.models.engines import ENGINES, MARGIN
    from quant.models.fit import UBATCHES, fit, weights_by_kind
    from quant.models.memory_model import memory_model

    if args.model is None:
        raise UsageError("--vram: name a model: a GGUF file, or a geometry such as deepseek-r1")
    vram = _devices(args)
    rule = ENGINES[args.engine]
    amb = _one(args.attn_max_batch, "-amb")
    method = _one(args.method, "--method")
    _refuse_foreign_options(args, rule)
    model = memory_model(args.model, args.type or "Q8_0", args.mla)
    if args.attention_mla is not None and not model.mla_form:
        raise UsageError(f"-mla: {model.name} has no latent attention")
    answer = fit(
        model,
        rule,
        vram,
        shares=args.tensor_split,
        reserve=MARGIN if args.reserve is None else args.reserve,
        n_ctx=_one(args.n_prompt, "-c"),
        ubatches=args.ubatch_size or UBATCHES,
        amb=amb * MIB if amb else None,
        kv_type=_one(args.kv_type, "--kv-type") or "f16",
        mla=args.attention_mla,
        flash=args.flash_attn != "0",
        method=method or "auto",
        n_threads=_one(args.threads, "-t"),
        device=PLANNED_AS[args.device or "cuda"],
    )
    notes = [*model.notes, *_warnings(model, answer.setting)]
    proposal = _proposal(args, model, rule, answer, vram)
    document = {
        "model": model.name,
        "engine": rule.name,
        "counted": rule.counted(model, answer.setting),
        "form": rule.form(model, answer.setting),
        "notes": notes,
        "weights": weights_by_kind(model),
        **answer.to_dict(),
        "placement": proposal,
    }
    if args.json:
        from .tables import print_json

        print_json(document)
    else:
        _print(document)
    return int(not answer.fits)


def _proposal(args, model, rule, answer, vram):
    """A placement that fits, as plain values; None: there is none, or the engine is another one's.

    Where everything fits on the devices at some context, the placement is for that; else for -c, or what `quant.load`
    takes by itself.
    """
    from quant.models.choices import DEFAULT_CONTEXT
    from quant.models.engines import MARGIN
    from quant.models.kqcap_memory import run_options
    from quant.models.memory_model import header_of
    from quant.models.propose import propose

    if rule.name != "kqcap" or model.config is None or args.device == "cpu" or args.threads:
        return None
    setting = answer.setting
    n_ctx = setting.n_ctx
    if not answer.fits:
        n_ctx = _one(args.n_prompt, "-c") or min(DEFAULT_CONTEXT, model.context_length)
    options = run_options(setting) | dict(n_ctx=n_ctx, n_threads=None, comm=None, split=None)
    reserve = MARGIN if args.reserve is None else args.reserve
    with header_of(args.model, args.type or "Q8_0", args.mla) as file:
        found = propose(file, [size - reserve for size in vram], options)
    if found is None:
        return None
    return {**found.to_dict(), "n_ctx": n_ctx, "n_ubatch": setting.n_ubatch}


def _refuse_foreign_options(args, rule):
    """An option that the engine does not have would be ignored in silence."""
    given = {"amb": args.attn_max_batch, "flash": args.flash_attn, "method": args.method}
    spelt = {"amb": "-amb", "flash": "-fa", "method": "--method"}
    for name, value in given.items():
        if value is not None and name not in rule.options:
            raise UsageError(f"{spelt[name]}: --engine {rule.name} has none")
    if rule.name == "kqcap" and "steps" in (args.method or ()) and args.device != "cpu":
        raise UsageError("--method steps: with --device cpu; a GPU's plan has none")
    if args.device and rule.name != "kqcap":
        raise UsageError("--device: for --engine kqcap")
    if args.attention_mla is not None and args.attention_mla not in rule.mla:
        forms = ", ".join(map(str, rule.mla)) or "none: the file's tensors decide"
        raise UsageError(f"-mla {args.attention_mla}: --engine {rule.name} has {forms}")


def _warnings(model, setting):
    if setting.n_ctx > model.context_length:
        yield beyond_context(setting.n_ctx, model.context_length)


def beyond_context(n_ctx: int, context_length: int) -> str:
    """The warning where more tokens are asked for than a model was made for."""
    return (
        f"warning: -c {n_ctx} is beyond the model's own context of {context_length} tokens: "
        "what it writes past that is of no use without a change of its RoPE"
    )


def _print(document):
    from quant.models.engines import FORMS

    from .tables import mib, note, print_table

    setting, weights, devices = document["setting"], document["weights"], document["devices"]
    total = sum(row["n_bytes"] for row in weights)
    note(
        f"{document['model']}: weights {mib(total)} MiB, {mib(document['host_weights'])} of them in the host's memory"
    )
    print_table(
        _columns(WEIGHT_COLUMNS, 2),
        [
            [row["kind"], row["qtype"], str(row["n_tensors"]), mib(row["n_bytes"]), f"{row['n_bytes'] / total:.1%}"]
            for row in weights
        ],
    )  # fmt: skip
    note(f"counted: {document['counted']}")
    if document["form"]:
        note(f"latent attention, {document['form']}: {FORMS[document['form']].text}")
    note(
        f"context {setting['n_ctx']}, u-batch {setting['n_ubatch']}, K/V {setting['kv_type']}, "
        f"{'fits' if document['fits'] else 'DOES NOT FIT'}; MiB a device:"
    )
    rows = [_device_row(str(index), device) for index, device in enumerate(devices)]
    if len(rows) > 1:
        sums = {key: sum(device[key] for device in devices) for key in (*PARTS, *SUMS)}
        rows.append(["all", str(sum(len(device["layers"]) for device in devices)), *_sizes(sums)])
    shown = [key in SUMS or any(device[key] for device in devices) for key in (*PARTS, *SUMS)]
    shown = [True, True, *shown]
    columns = _columns(["device", "layers", *PARTS.values(), *SUMS.values()], 1)
    print_table(
        [column for column, keep in zip(columns, shown, strict=True) if keep],
        [[cell for cell, keep in zip(row, shown, strict=True) if keep] for row in rows],
    )
    note(f"the largest context for each u-batch, by {document['engine']}'s rule:")
    has_amb = any(row["amb_most"] for row in document["frontier"])
    print_table(
        _columns(FRONTIER_COLUMNS + ["amb at most"] * has_amb, 0),
        [
            [str(row["n_ubatch"]), str(row["n_ctx"] or "none")]
            + [mib(row["amb_most"], 0) if row["amb_most"] else "-"] * has_amb
            for row in document["frontier"]
        ],
    )
    if not document["fits"]:
        short = [index for index, device in enumerate(devices) if device["free"] < 0]
        note(
            f"does not fit: device(s) {', '.join(map(str, short))}; with this split every device needs "
            f"{mib(document['smallest_vram'])} MiB"
        )
    if document["amb_most"]:
        note(
            f"{'-amb may be' if document['fits'] else 'it fits with -amb'} {mib(document['amb_most'], 0)} at most "
            f"({document['engine']}'s -amb)"
        )
    if document["placement"]:
        _print_placement(document["placement"])
    for text in document["notes"]:
        note(text)


def _print_placement(found):
    """What to run, and what lies where then."""
    from .tables import mib, note

    note(
        f"a placement that fits: kqcap run MODEL {found['arguments']} -c {found['n_ctx']} -ub {found['n_ubatch']}"
    )
    for name, memory in found["memory_of"].items():
        weights = memory["weights_copied"] + memory["weights_made"] or memory["weights"]
        note(
            f"  {name}: weights {mib(weights)} MiB{' in the mapped file' * (name == 'cpu')}, K/V cache "
            f"{mib(memory['kv_cache'])}, compute {mib(memory['compute'])}"
        )


def _device_row(name, device):
    layers = str(len(device["layers"])) + (" + output" if device["has_output"] else "")
    return [name, layers, *_sizes(device)]


def _sizes(device):
    from .tables import mib

    return [mib(device[key]) for key in (*PARTS, *SUMS)]


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
