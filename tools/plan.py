"""``kqcap plan``: what attention would take, next to what ik_llama.cpp's ``-amb`` rule would do."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from . import fit
from .options import MIB, UsageError, add_sweep, fill_list_defaults, new_parser, positive

if TYPE_CHECKING:
    import argparse
    from typing import Any


DESCRIPTION = """\
Print the plan of one layer's attention (tiles, steps, scratch to the byte) for each
combination of the values given, next to what ik_llama.cpp's -amb rule would do with the
same sizes. Nothing is computed or allocated. With no arguments: the examples of the pull
request that -amb comes from (DeepSeek-R1, 512 tokens, amb 2048).
With --vram: what fits of a whole model, its weights and K/V cache included."""

EPILOG = """\
columns:
  tile          heads x query rows x keys whose scores are worked on at a time
  workers       threads that work at once, each on a tile and scratch of its own
  K*Q           MiB of scores held at once, of all workers
  scratch       MiB taken from the pool in all
  K and V       MiB of the operands that the call is given, beside the pool (-mla 0, 3: of all heads,
                decompressed; -mla 1, 2: latents, which all heads share)
  K/V cache, compute
                MiB that the whole model takes, of a model whose passes are modelled: the cache at that
                context, and what passes work in (activations, scratch, logits), to the byte as
                `kqcap run` takes them
  ik steps ...  ik_llama.cpp (8337e4cd3): steps, heads per step, K*Q of a step, and by how much
                that is above -amb
All but ik's columns is kqcap's. A row that cannot run says what it would need.

examples:
  kqcap plan model.gguf --vram 24GiB
  kqcap plan model.gguf --vram 24GiB,16GiB --engine llama.cpp
  kqcap plan deepseek-r1 --type Q2_K --mla both --vram 24GiB -c 163840 -ub 1024 \\
      --tensor-split 37,25,25,25,24.5,24,24,24,24,25,24,25,24,24.5,31"""

CONTEXTS = [8192, 16000, 24000, 163000]
PR_EXAMPLES = dict(heads=128, d_k=192, d_v=128)
SIZES = {  # option -> name in the geometry
    "heads": "n_head",
    "heads_kv": "n_head_kv",
    "d_k": "d_k",
    "d_v": "d_v",
}
PARAMETERS = [("n_ubatch", "n_ubatch"), ("kv_type", "type_kv"), ("n_threads", "threads")]
COLUMNS = [
    ("n_kv", "right"),
    ("amb", "right"),
    ("method", "left"),
    ("tile", "right"),
    ("workers", "right"),
    ("steps", "right"),
    ("K*Q", "right"),
    ("scratch", "right"),
    ("K and V", "right"),
    ("ik steps", "right"),
    ("ik heads", "right"),
    ("ik K*Q", "right"),
    ("ik over", "right"),
]
MODEL_COLUMNS = [("K/V cache", "right"), ("compute", "right")]


def add_parser(subparsers: Any) -> None:
    parser = new_parser(
        subparsers,
        "plan",
        help="the plan for a model file or for sizes, next to ik_llama.cpp's",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("target", nargs="?", metavar="MODEL", help="as -m")
    parser.add_argument(
        "-m", "--model", metavar="FILE",
        help="take the sizes from this GGUF file, or a geometry by name, such as deepseek-r1",
    )  # fmt: skip
    parser.add_argument("--heads", type=positive, metavar="N", help="query heads (default: 128)")
    parser.add_argument(
        "--heads-kv", type=positive, metavar="N", help="K/V heads (default: as --heads)"
    )
    parser.add_argument(
        "--d-k", type=positive, metavar="N", help="head size of Q and K (default: 192)"
    )
    parser.add_argument("--d-v", type=positive, metavar="N", help="head size of V (default: 128)")
    add_sweep(parser, context=CONTEXTS, ubatch=[512], amb=[2048])
    parser.add_argument(
        "-mla",
        dest="attention_mla",
        type=int,
        choices=(0, 1, 2, 3),
        metavar="N",
        help="latent attention: 0 heads are cached, 1 latents are read, 3 they are decompressed; 2 as 1 (kqcap) "
        "or 3 (ik) (default: 3; with --vram the engine's: kqcap 1, ik 3)",
    )
    parser.add_argument(
        "--sinks",
        action="store_true",
        help="the model has attention sinks (ik_llama.cpp: never split)",
    )
    parser.add_argument("--ik-path", choices=("mla", "standard"),
                        help="ik_llama.cpp's path to compare with (default: mla for deepseek2 and "
                        "for sizes without grouped K/V heads)")  # fmt: skip
    fit.add_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.target is not None:
        if args.model is not None:
            raise UsageError("MODEL, -m: one model")
        args.model = args.target
    if args.vram:
        return fit.run(args)
    fit.refuse_without_vram(args)
    contexts_given = args.n_prompt is not None
    if args.model is not None:  # whose cache is f16, as everywhere, if nothing else is said
        args.kv_type = args.kv_type or ["f16"]
    fill_list_defaults(args)
    geometry = _geometry(args)
    warnings = _settle_contexts(args, geometry, contexts_given)
    combinations = itertools.product(
        args.n_prompt,
        args.ubatch_size,
        args.attn_max_batch,
        args.kv_type,
        args.threads,
        args.method,
    )
    model, notes = _whole_model(args)
    warnings += notes
    rows = [
        _row(geometry, args.sinks, *combination) | _taken(model, args.attention_mla, *combination)
        for combination in combinations
    ]
    _print(args, geometry, rows, warnings)
    if all(row["plan"] is None for row in rows):
        raise UsageError(rows[0]["error"])
    return 0


def _settle_contexts(args, geometry, given):
    """Drop contexts beyond the model's own, or warn of those that were asked for."""
    most = geometry.get("context_length")
    beyond = [n for n in args.n_prompt if most is not None and n > most]
    if beyond and given:
        return [fit.beyond_context(n, most) for n in beyond]
    args.n_prompt = [n for n in args.n_prompt if n not in beyond] or [most]
    return []


def _geometry(args):
    """n_head, n_head_kv, d_k, d_v and ik_llama.cpp's path, from the file or the options."""
    given = {name: getattr(args, option) for option, name in SIZES.items()}
    if args.model is not None:
        clash = [
            f"--{option.replace('_', '-')}" for option in SIZES if getattr(args, option) is not None
        ]
        if clash:
            raise UsageError(f"{', '.join(clash)}: the sizes come from -m; give one or the other")
        geometry = _model_geometry(args.model, args.attention_mla)
    elif args.attention_mla is not None:
        raise UsageError("-mla: for a model")
    else:
        defaults = {SIZES[option]: value for option, value in PR_EXAMPLES.items()}
        geometry = {**defaults, **{name: n for name, n in given.items() if n is not None}}
        geometry.setdefault("n_head_kv", geometry["n_head"])
        geometry["ik_path"] = "mla" if geometry["n_head_kv"] == geometry["n_head"] else "standard"
    if args.ik_path:
        geometry["ik_path"] = args.ik_path
    return geometry


def _model_geometry(path, mla):
    attention = _attention(path)
    n_head, n_head_kv = _widest_layer(attention)
    geometry = dict(
        n_head=n_head,
        n_head_kv=n_head_kv,
        d_k=attention.d_k,
        d_v=attention.d_v,
        ik_path="mla" if attention.is_mla else "standard",
        model=str(path),
        context_length=attention.context_length,
    )
    if attention.window:
        windows = attention.window
        windows = (windows,) * attention.n_layer if isinstance(windows, int) else windows
        geometry["windows"] = {n: windows.count(n) for n in sorted(set(windows) - {0})}
    if mla is not None and not attention.is_mla:
        raise UsageError(f"-mla: {path} has no latent attention")
    if mla in (1, 2):
        latent = dict(n_head_kv=1, d_k=attention.d_k_latent, d_v=attention.kv_lora_rank)
        geometry.update(latent, v_in_k=True)
    return geometry


def _whole_model(args):
    """The `ModelMemory` whose passes are counted, or None; and what to say."""
    from quant.models.memory_model import memory_model

    if args.model is None:
        return None, []
    try:
        model = memory_model(args.model, args.type or "Q8_0", args.mla)
        why = model.unmodelled
    except ValueError as error:  # a file with enough in its header for the tiles
        model, why = None, str(error)
    if model is None or model.config is None:
        return None, [f"whole passes are not counted: {why}"]
    return model, list(model.notes)


def _taken(model, mla, n_kv, n_ubatch, amb_mib, kv_type, n_threads, method):
    """What the whole model takes: bytes of its K/V cache, and of compute memory by what it is for."""
    import lowlevel
    from quant.models.engines import KQCAP
    from quant.models.fit import Setting, device_memory

    if model is None:
        return {}
    setting = Setting(n_kv, n_ubatch, amb_mib * MIB or None, kv_type, mla, True, method, n_threads)
    try:
        (memory,) = device_memory(model, KQCAP, setting, [0], [1])
    except lowlevel.BudgetError:
        return dict(kv_cache_bytes=None, compute_bytes=None)
    made = memory.compute.weights_made
    return dict(
        kv_cache_bytes=memory.kv,
        compute=memory.compute._asdict(),
        compute_bytes=sum(memory.compute) - made,
        weights_made_bytes=made,
    )


def _attention(model):
    """The `AttentionGeometry` of a file, or of a named geometry where no file has that name."""
    import quant
    from quant.models.named_geometries import GEOMETRIES, named_geometry

    if model in GEOMETRIES and not os.path.exists(model):
        return named_geometry(model).attention
    with quant.open(model) as file:
        return file.attention


def _widest_layer(attention):
    """(n_head, n_head_kv) of the layer with the most query heads, the one that takes most."""
    per_layer = (
        (n,) * attention.n_layer if isinstance(n, int) else n
        for n in (attention.n_head, attention.n_head_kv)
    )
    layers = [layer for layer in zip(*per_layer, strict=True) if all(layer)]
    if not layers:
        raise UsageError(attention.no_heads)
    return max(layers)


def _row(geometry, sinks, n_kv, n_ubatch, amb_mib, kv_type, n_threads, method):
    from dataclasses import asdict

    import lowlevel
    from quant.models.ik_rule import ik_steps

    n_tokens = min(n_ubatch, n_kv)
    sizes = {name: geometry[name] for name in ("n_head", "n_head_kv")}
    row = dict(
        n_kv=n_kv,
        n_ubatch=n_tokens,
        amb_mib=amb_mib,
        kv_type=kv_type,
        n_threads=n_threads,
        method=method,
        kv_bytes=_operand_bytes(geometry, n_kv, kv_type),
        plan=None,
        needs_bytes=None,
        error=None,
    )
    try:
        plan = lowlevel.plan_attention(
            **sizes,
            d_k=geometry["d_k"],
            d_v=geometry["d_v"],
            n_tokens=n_tokens,
            n_kv=n_kv,
            budget=amb_mib * MIB or None,
            kv_dtype=plan_dtype(kv_type),
            method=method,
            n_threads=n_threads,
            v_in_k=geometry.get("v_in_k", False),
        )
        row["plan"] = plan.to_dict()
    except lowlevel.BudgetError as error:
        row["needs_bytes"] = error.requested
        row["error"] = str(error)
    mla = geometry["ik_path"] == "mla"
    ik = ik_steps(**sizes, n_tokens=n_tokens, n_kv=n_kv, amb_mib=amb_mib, sinks=sinks, mla=mla)
    row["ik"] = asdict(ik)
    return row


def _operand_bytes(geometry, n_kv, kv_type):
    """Bytes of K and V as the call is given them."""
    from quant.models.fit import row_bytes

    heads = geometry["d_k"], 0 if geometry.get("v_in_k") else geometry["d_v"]
    return n_kv * geometry["n_head_kv"] * sum(row_bytes(d, kv_type) for d in heads)


def plan_dtype(kv_type: str) -> str:
    """The library's name of a ``--kv-type``."""
    return {"f32": "float32", "f16": "float16", "q8_0": "Q8_0"}[kv_type]


def _print(args, geometry, rows, warnings):
    from . import tables

    if args.json:
        tables.print_json(dict(geometry=geometry, warnings=warnings, rows=rows))
        return
    title = (
        "kqcap's attention in one layer of {n_head} heads, {n_head_kv} K/V heads, d_k {d_k}, d_v {d_v}; "
        "sizes in MiB; ik: ik_llama.cpp's {ik_path} path".format(**geometry)
    )
    columns = COLUMNS + MODEL_COLUMNS * ("kv_cache_bytes" in rows[0])
    tables.print_sweep(title, rows, PARAMETERS, columns, _cells, n_keys=3)  # n_kv, amb, method
    paths = sorted({row["plan"]["path"] for row in rows if row["plan"]})
    if paths:
        tables.note(f"the kernels that run: {', '.join(paths)}")
    for reason in sorted({row["ik"]["reason"] for row in rows} - {""}):
        tables.note(f"ik_llama.cpp: {reason}")
    tables.note_what_cannot_run(
        [(row["needs_bytes"], row["error"]) for row in rows if row["error"]]
    )
    for window, n_layers in geometry.get("windows", {}).items():
        tables.note(
            f"{n_layers} layers see a window of {window} keys: their n_kv is at most that and a u-batch"
        )
    for warning in warnings:
        tables.note(warning)


def _cells(row):
    from .tables import mib, tile

    plan, ik = row["plan"], row["ik"]
    if plan is None:
        ours = [f"needs {mib(row['needs_bytes'])}", "-", "-", "-", "-"]
    else:
        ours = [tile(plan), str(plan["n_workers"]), str(plan["n_steps"])]
        ours += [mib(plan["kq_bytes"]), mib(plan["scratch_bytes"])]
    return [
        str(row["n_kv"]),
        str(row["amb_mib"]),
        row["method"],
        *ours,
        mib(row["kv_bytes"]),
        str(ik["n_steps"]),
        str(ik["heads"]),
        mib(ik["kq_bytes"]),
        mib(ik["overshoot_bytes"]) if ik["overshoot_bytes"] else "0",
        *(
            [mib(row[key]) for key in ("kv_cache_bytes", "compute_bytes")]
            if "kv_cache_bytes" in row
            else []
        ),
    ]
