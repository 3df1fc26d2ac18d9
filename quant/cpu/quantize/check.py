"""What a quantiser asks of its input: that every weight is finite and small enough."""

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel


@kernel
def take(counter):
    """The number of the next task."""
    return simd.take_task(counter, 1)


@kernel
def largest_bits(address, n_weights):
    """Bits of the largest absolute value among `n_weights` float32 behind `address`, as int.

    The bits of positive floats are ordered as the floats are; infinity and then NaN come last.
    """
    n_vectors = n_weights // 16
    sizes = simd.splat(0)
    for i in range(n_vectors):
        bits = simd.as_i32x16(simd.read_f32x16(address, 16 * i))
        sizes = simd.maximum(sizes, bits & 0x7FFFFFFF)
    for i in range(16 * n_vectors, n_weights):
        value = simd.splat(simd.read_f32(address, i))
        sizes = simd.maximum(sizes, simd.as_i32x16(value) & 0x7FFFFFFF)
    largest = 0
    for lane in range(16):
        largest = max(largest, simd.extract(sizes, lane))
    return largest
