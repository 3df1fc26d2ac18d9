"""``kqcap bench --device``: attention on a GPU, or tiny on the simulator."""

from __future__ import annotations

from lowlevel import devices

from . import tables
from .options import UsageError

# Error over the largest output, by the type of the queries.
BOUNDS = {"float32": 5e-6, "float16": 2e-3}
_DEFAULTS = dict(n_prompt=[16384, 163840], ubatch_size=[2048], attn_max_batch=[64], repetitions=5)


def run(args):
    """Measure and print; 1 if an error is beyond its bound."""
    from . import device_attention

    if args.vs not in (None, ["torch"]):
        raise UsageError("--vs: on a device torch alone is compared with")
    n_kvs, n_tokens, budgets, rounds = (
        getattr(args, name) or default for name, default in _DEFAULTS.items()
    )
    shapes = [
        shape
        for shape in device_attention.SHAPES
        if not args.only or any(text in shape.name for text in args.only)
    ]
    if not shapes:
        names = ", ".join(shape.name for shape in device_attention.SHAPES)
        raise UsageError(f"--only: none of {names}")
    print_line = (lambda text: None) if args.json else tables.note
    print_line(device_attention.HEADER)
    result = device_attention.measure(
        devices.canonical_name(args.device),
        shapes,
        n_kvs,
        n_tokens,
        [f"{n}MiB" if n else "64GiB" for n in budgets],
        rounds,
        peers=bool(args.vs),
        note=print_line,
    )
    if args.json:
        tables.print_json(result)
    types = {shape.name: shape.q_type for shape in shapes}
    return int(any(not row["error"] <= BOUNDS[types[row["shape"]]] for row in result["rows"]))
