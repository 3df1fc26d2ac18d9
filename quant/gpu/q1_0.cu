// Q1_0: 128 weights of one bit, a scale or its negative; the lowest bit of a byte first.
#include "constants/q1_0.cuh"
#include "dequantize.cuh"

struct Q1_0 : constants::Q1_0 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const unsigned d = __float_as_uint(block.half(kD));
    unsigned bits = block.byte(kQs + index / 8) >> (index % 8);
    if constexpr (kVector == 16) bits |= block.byte(kQs + index / 8 + 1) << 8;
#pragma unroll
    for (int i = 0; i < kVector; ++i) weights[i] = __uint_as_float(d ^ ~bits >> i << 31);
  }
};
