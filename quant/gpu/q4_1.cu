// Q4_1: a scale, a minimum and 32 weights of four bits; those of the low nibbles of 16 bytes first.
#include "constants/q4_1.cuh"
#include "dequantize.cuh"

struct Q4_1 : constants::Q4_1 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<4>(kQs + index % 16, codes);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i) codes[i] = codes[i] >> (index / 16 * 4) & 0x0f0f0f0fu;
    scale_bytes_less<kVector>(codes, block.half(kD), -block.half(kM), weights);
  }
};
