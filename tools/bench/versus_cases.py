"""What ``kqcap bench --vs`` runs, as data: kernels, sizes, and the bars they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quant.formats import FORMATS

from ..options import MIB
from . import selection

__all__ = ["CASES", "KINDS", "Bar", "Case", "kept_pairs", "select"]

KINDS = ("dequantize", "matvec", "gemm", "attention", "startup")
# Rows of a matrix product are read from as many copies of the weight as make up this much, so that
# no peer finds its weight in a cache.
MATVEC_BYTES = 128 * MIB


@dataclass(frozen=True)
class Bar:
    """What a measurement must reach.

    Attributes
    ----------
    what : str
        "speed": ours over the fastest of the columns `of`; "limit": our rate over that of the
        machine's limits `of`; "scratch": at most `bound` bytes; "seconds": at most `bound`;
        "imports": none of the modules `of` may be imported.
    of : tuple of str
    bound : float
    goal : float, optional
        What would be better still.
    ours : str
        Which of our columns it is about.
    threads : tuple of int, optional
        Numbers of threads that it holds for; None: any.
    """

    what: str
    of: tuple = ()
    bound: float = 0.0
    goal: float | None = None
    ours: str = "ours"
    threads: tuple | None = None


@dataclass(frozen=True)
class Case:
    """One kernel on one size.

    Attributes
    ----------
    name : str
        Unique; what ``--only`` looks at.
    kind : str
        One of `KINDS`.
    sizes : dict
        What the kind needs to make its inputs: plain data, sent to the peers' processes.
    limits : tuple of str
        The machine's limits that are measured beside it; the first one is its roofline.
    floor : str, optional
        The limit that the work cannot be done faster than: a missed bar says what it would allow.
    work : float
        What one call does, in units of the first limit: bytes or floating point operations.
    bars : tuple of Bar
    """

    name: str
    kind: str
    sizes: dict
    limits: tuple = ()
    floor: str | None = None
    work: float = 0.0
    bars: tuple = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def select(patterns: Sequence[str] | None) -> tuple[Case, ...]:
    """The cases that ``--only`` names; None: all."""
    cases = {case.name: case for case in CASES}
    return tuple(cases[name] for name in selection.select(cases, patterns))


def kept_pairs(n_tokens: int, n_kv: int) -> int:
    """Pairs of a query row and a key that a causal mask keeps."""
    return n_tokens * n_kv - n_tokens * (n_tokens - 1) // 2


# ---------------------------------------------------------------- dequantisation and products

_OUT_WEIGHTS = 64 * MIB // 4
# Types whose blocks are unpacked at the speed of memory, with the least speed over ggml's C function, where an issue sets one.
_DEQUANTIZE_BARS = {
    "Q2_K": 4.0,
    "IQ4_NL": 4.0,
    "Q3_K": 5.0,
    "Q6_K": 5.0,
    "Q4_K": 1.1,
    "Q8_0": 1.1,
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q5_K"), 0.0),
}
_FLOATS = ("F16", "BF16")
_BLOCKS = {block.name: block for block in FORMATS.values() if block.name != "F32"}


def _weight_bytes(qtype, n_weights):
    block = _BLOCKS[qtype]
    return n_weights // block.block_weights * block.block_bytes


def _dequantize(qtype):
    bars, times_ggml = (), _DEQUANTIZE_BARS.get(qtype)
    if times_ggml is not None:
        bars = (Bar("limit", ("fill",), 0.85, goal=0.95),)
    if times_ggml:
        bars += Bar("speed", ("ggml",), times_ggml), Bar("speed", ("gguf",), 50.0)
    return Case(
        name=f"dequantize {qtype}",
        kind="dequantize",
        sizes=dict(qtype=qtype, rows=_OUT_WEIGHTS // 4096, columns=4096, copies=1),
        limits=("fill", "traffic"),
        floor="traffic",
        work=4 * _OUT_WEIGHTS,
        bars=bars,
    )


_GGML = "ggml", "ggml repacked"
_MATVEC_FAST = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0", "Q4_1", "Q5_0", "Q5_K", "IQ4_XS", "MXFP4")
_MATVEC_BARS = {
    **{name: (Bar("speed", _GGML, 1.0, threads=(2,)),) for name in _BLOCKS},
    **{name: (Bar("speed", _GGML, 1.2, goal=1.5, threads=(2,)),) for name in _MATVEC_FAST},
    "IQ4_NL": (
        Bar("limit", ("read",), 0.9, threads=(2,)),
        Bar("speed", _GGML, 1.4, goal=2.0, threads=(2,)),
    ),
}


def _matvec(qtype):
    rows, columns = 16384, 4096
    n_bytes = _weight_bytes(qtype, rows * columns)
    return Case(
        name=f"matvec {qtype}",
        kind="matvec",
        sizes=dict(
            qtype=qtype, rows=rows, columns=columns, n=1, copies=-(-MATVEC_BYTES // n_bytes)
        ),
        limits=("read",),
        floor="read",
        work=n_bytes,
        bars=_MATVEC_BARS[qtype],
    )


_GEMM_BARS = {
    **{name: (Bar("speed", _GGML, 1.2, goal=2.0, threads=(2,)),) for name in _BLOCKS},
    "IQ4_NL": (Bar("speed", _GGML, 1.8, goal=3.0, threads=(2,)),),
}


def _gemm(qtype):
    n, rows, columns = 512, 2048, 2048
    return Case(
        name=f"gemm {qtype}",
        kind="gemm",
        sizes=dict(qtype=qtype, rows=rows, columns=columns, n=n, copies=1),
        limits=("fma",) if qtype in _FLOATS else ("int8 dot",),
        work=2 * n * rows * columns,
        bars=_GEMM_BARS[qtype],
    )


# ---------------------------------------------------------------- attention

_SCRATCH = Bar("scratch", (), 2 * MIB)
_PREFILL_BARS = (
    Bar("speed", ("torch",), 1.25, goal=1.5),
    # like with like: both read f16 K and V
    Bar("speed", ("ggml",), 1.5, ours="ours f16"),
    Bar("limit", ("sgemm",), 0.9),
    _SCRATCH,
)
_MLA_BARS = (Bar("speed", ("torch expanded", "torch gqa"), 1.4, goal=2.0), _SCRATCH)


def _not_slower(*torch_forms):
    return (Bar("speed", torch_forms, 1.0), _SCRATCH)


def _attention(name, heads, kv_heads, d_k, d_v, n_tokens, n_kv, bars, *, torch=(), v_in_k=False):
    """A case; `torch`: which forms of its call are tried."""
    is_decode = n_tokens == 1
    flops = 2 * heads * kept_pairs(n_tokens, n_kv) * (d_k + d_v)
    kv_bytes = 4 * kv_heads * n_kv * (d_k if v_in_k else d_k + d_v)
    return Case(
        name=f"attention {name} {heads}/{kv_heads} {d_k}/{d_v} u{n_tokens} n{n_kv}",
        kind="attention",
        sizes=dict(
            n_head=heads,
            n_head_kv=kv_heads,
            d_k=d_k,
            d_v=d_v,
            n_tokens=n_tokens,
            n_kv=n_kv,
            v_in_k=v_in_k,
            torch=torch,
        ),
        limits=("read",) if is_decode else ("fma", "sgemm"),
        work=kv_bytes if is_decode else flops,
        bars=bars,
    )


_MHA_FORMS = ("torch", "torch math")
_GQA_FORMS = ("torch gqa", "torch expanded")

_ATTENTION = (
    *(
        _attention("prefill", 16, 16, 192, 128, u, n, _PREFILL_BARS, torch=("torch",))
        for u in (512, 2048)
        for n in (4096, 16384)
    ),
    _attention(
        "mla", 16, 1, 576, 512, 512, 4096, _MLA_BARS, torch=_GQA_FORMS, v_in_k=True
    ),
    _attention("20 heads", 20, 20, 192, 128, 512, 4096, _not_slower(*_MHA_FORMS), torch=_MHA_FORMS),
    _attention("1 head", 1, 1, 192, 128, 512, 16384, _not_slower(*_MHA_FORMS), torch=_MHA_FORMS),
    _attention("decode", 16, 16, 192, 128, 1, 16384, _not_slower(*_MHA_FORMS), torch=_MHA_FORMS),
    _attention(
        "decode 1 head", 1, 1, 192, 128, 1, 16384, _not_slower(*_MHA_FORMS), torch=_MHA_FORMS
    ),
    _attention("gqa", 32, 8, 128, 128, 512, 4096, _not_slower(*_GQA_FORMS), torch=_GQA_FORMS),
    _attention(
        "gqa decode", 32, 8, 128, 128, 1, 16384,
        _not_slower(*_GQA_FORMS, "torch math"), torch=(*_GQA_FORMS, "torch math"),
    ),
)  # fmt: skip

_STARTUP = (
    Case(
        name="startup import",
        kind="startup",
        sizes=dict(what="import"),
        bars=(Bar("seconds", (), 0.8), Bar("imports", ("scipy",))),
    ),
    Case(
        name="startup compile",
        kind="startup",
        sizes=dict(what="compile"),
        bars=(Bar("seconds", (), 5.0),),
    ),
)

CASES = (
    *map(_dequantize, _BLOCKS),
    *map(_matvec, _BLOCKS),
    *map(_gemm, _BLOCKS),
    *_ATTENTION,
    *_STARTUP,
)
