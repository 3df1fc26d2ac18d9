"""Fills for dense K and V (see lowlevel/attention/kv_source.py): rows of float32, float16, bfloat16 to float32."""

from numba import types

from . import simd
from .jit import c_kernel, kernel

# Pointers travel as int64: rows may lie at negative or zero strides, which arrays would wrap.
FILL_SIGNATURE = types.void(*[types.int64] * 6)


@kernel(inline=True)
def _copy_row(source, n, out):
    whole = n - n % 16
    for i in range(0, whole, 16):
        simd.write_f32x16(out, i, simd.read_f32x16(source, i))
    for i in range(whole, n):
        simd.write_f32(out, i, simd.read_f32(source, i))


def _make_convert_row(convert):
    @kernel(inline=True)
    def convert_row(source, n, out):
        whole = n - n % 16
        for i in range(0, whole, 16):
            simd.write_f32x16(out, i, convert(simd.read_u16x16(source + 2 * i)))
        for i in range(whole, n):
            simd.write_f32(out, i, convert(simd.read_u16(source + 2 * i)))

    return convert_row


def _make_fill(fill_row):
    @c_kernel(FILL_SIGNATURE)
    def fill(source, row_stride, n_rows, n_columns, out, stride):
        for row in range(n_rows):
            fill_row(source + row * row_stride, n_columns, out + 4 * row * stride)

    return fill


DENSE = {
    "float32": _make_fill(_copy_row),
    "float16": _make_fill(_make_convert_row(simd.half_to_f32)),
    "bfloat16": _make_fill(_make_convert_row(simd.bfloat_to_f32)),
}
