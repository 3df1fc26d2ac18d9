// Q6_K: a super-block of 16 x 16 weights of six bits, each 16 with a signed byte as scale.
#include "constants/q6_k.cuh"
#include "dequantize.cuh"

struct Q6_K : constants::Q6_K {
  // Per half of 128 weights: nibbles of 64 bytes with the low four bits, the low nibbles first, and
  // 32 bytes with the high two bits of four times 32 weights.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4], high[kVector / 4];
    block.template words<kVector>(kQl + index / 128 * 64 + index % 64, codes);
    block.template words<kVector>(kQh + index / 128 * 32 + index % 32, high);
    const float scale = (float)(signed char)block.byte(kScales + index / 16);
    const int nibble = index / 64 % 2 * 4, pair = index / 32 % 4 * 2;
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = (codes[i] >> nibble & 0x0f0f0f0fu) | (high[i] >> pair & 0x03030303u) << 4;
    scale_bytes<kVector>(codes, -32.0f, __fmul_rn(block.half(kD), scale), weights);
  }
};
