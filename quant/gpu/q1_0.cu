// Q1_0: 128 weights of one bit, a scale or its negative; the lowest bit of a byte first.
#include "constants/q1_0.cuh"
#include "dequantize.cuh"

struct Q1_0 : constants::Q1_0 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const unsigned d = __float_as_uint(block.half(kD));
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const unsigned bit = block.byte(kQs + (index + i) / 8) >> ((index + i) % 8) & 1;
      weights[i] = __uint_as_float(d ^ (bit ^ 1) << 31);
    }
  }
};
