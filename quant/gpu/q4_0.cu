// Q4_0: a scale and 32 weights of four bits, less eight; those of the low nibbles of 16 bytes first.
#include "constants/q4_0.cuh"
#include "dequantize.cuh"

struct Q4_0 : constants::Q4_0 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<2>(kQs + index % 16, codes);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i) codes[i] = codes[i] >> (index / 16 * 4) & 0x0f0f0f0fu;
    scale_bytes<kVector>(codes, -8.0f, block.half(kD), weights);
  }
};
