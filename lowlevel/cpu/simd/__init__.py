"""Vector values for Numba CPU kernels.

LLVM vectors become Numba types (`f32x16`, `i32x16`, `u8x16`, ...) that kernels load, combine with
the ordinary operators, and store::

    w = simd.widen(simd.load_u8x16(q, b))            # 16 bytes -> i32x16
    y = simd.fma(simd.to_f32((w >> 2) & 3), dl, ml)  # f32x16
    simd.store(out, o, y)

Vectors are 16 float or int lanes, or 64 bytes: one AVX-512 register. LLVM splits them on
narrower CPUs, so all arithmetic here is portable as it stands. (What takes its lanes from its operands works
on others too: `quant.matmul` has eight of its own with AVX2.) Only what LLVM has no portable
instruction for comes in several forms, chosen once at import by `LEVEL`:

=========  =====================================  ==========================================
operation  avx512 / avx2                          portable
=========  =====================================  ==========================================
lookup16   one vpermps / two and a blend          lane by lane
bytes16    vpshufb                                lane by lane
dot_u8s8   vpdpbusd (VNNI) / vpmaddwd pairs       shifts and multiplies that LLVM vectorises
half       vcvtph2ps, vcvtps2ph (F16C)            integer arithmetic that LLVM vectorises
=========  =====================================  ==========================================

`LEVEL` follows the CPU, or NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, which Numba itself honours: that
is how the tests run the narrower forms. Numba keys its disk cache by both.

No fast-math flag is set here: `fma` is one rounding, ``*`` and ``+`` are one each.

Kernels use the names below; who makes operations of their own finds LLVM's building blocks in `emit`.
"""

# ruff: noqa: F401
from . import operators  # registers + - * / & | ^ << >> < <= > >= ==
from .addresses import (
    call_fill,
    emit_prefetch,
    make_read_at,
    prefetch,
    read_f32,
    read_f32x16,
    read_i32,
    read_i64,
    read_u8,
    read_u8x16,
    read_u8x32,
    read_u8x64,
    read_u16,
    read_u16x16,
    spill,
    stream_at,
    stream_pieces_at,
    write_at,
    write_f32,
    write_f32x16,
    write_first_f32,
)
from .arithmetic import (
    absolute,
    any_set,
    divide,
    float_of,
    fma,
    max_lanes,
    maximum,
    minimum,
    multiply_add,
    negate,
    round_even,
    select,
    square_root,
    sum_lanes,
)
from .arrays import (
    address,
    load_f32x16,
    load_i32x16,
    load_u8x16,
    load_u8x32,
    load_u8x64,
    load_u16x16,
    store,
    stream,
    stream_fence,
    stream_half,
    take_task,
)
from .conversion import (
    as_floats,
    as_i32x16,
    as_u8x64,
    bfloat_to_f32,
    bytes_of,
    emit_bfloat_to_f32,
    emit_half_to_f32,
    extract,
    f32_to_bfloat,
    f32_to_half,
    half_to_f32,
    iota,
    join,
    lower_half,
    narrow,
    shift_right_signed,
    splat,
    splat_half,
    to_f32,
    to_i32,
    upper_half,
    widen,
    widen_signed,
)
from .dot import dot_u8s8, emit_dot
from .level import FEATURES, HAS_VNNI, LEVEL
from .lookup import bytes16, lookup16, lookup16_words, lookup_far, lookup_far_pair
from .pairs import (
    even_lanes,
    odd_lanes,
    read_first_f32,
    stack_floats,
    turn,
    zip_high,
    zip_low,
)
from .vectors import Vec, f32x16, i32x16, mask16, u8x16, u8x32, u8x64, u16x16, u16x32
