// Q2_K: a super-block of 16 x 16 weights of two bits, each 16 with a scale and a minimum.
#include "constants/q2_k.cuh"
#include "dequantize.cuh"

struct Q2_K : constants::Q2_K {
  // Two bits at one place in 32 bytes belong to 32 consecutive weights; there are two times 32 bytes.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<kVector>(kQs + index / 128 * 32 + index % 32, codes);
    const unsigned scale = block.byte(kScales + index / 16);
    const int shift = index / 32 % 4 * 2;
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i) codes[i] = codes[i] >> shift & 0x03030303u;
    scale_bytes_less<kVector>(codes, __fmul_rn(block.half(kD), (float)(scale & 15)),
                              __fmul_rn(block.half(kDmin), (float)(scale >> 4)), weights);
  }
};
