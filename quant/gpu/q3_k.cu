// Q3_K: a super-block of 16 x 16 weights of three bits, each 16 with a six-bit scale.
#include "constants/q3_k.cuh"
#include "dequantize.cuh"

struct Q3_K : constants::Q3_K {
  // The lower two bits lie as in Q2_K. Bit i of hmask's 32 bytes is the third bit of the i-th 32
  // weights. Of the 12 scale bytes, byte s % 8 holds the low four bits of scale s in its nibble s / 8,
  // and byte 8 + s % 4 the high two as its pair of bits s / 4.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4], hmask[kVector / 4];
    block.template words<kVector>(kQs + index / 128 * 32 + index % 32, codes);
    block.template words<kVector>(kHmask + index % 32, hmask);
    const int s = index / 16, part = index / 32;
    const unsigned low = block.byte(kScales + s % 8) >> (s / 8 * 4) & 15;
    const unsigned high = block.byte(kScales + 8 + s % 4) >> (s / 4 * 2) & 3;
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = (codes[i] >> (part % 4 * 2) & 0x03030303u) | (hmask[i] >> part & 0x01010101u) << 2;
    const float scale = (float)((int)(low | high << 4) - 32);
    scale_bytes<kVector>(codes, -4.0f, __fmul_rn(block.half(kD), scale), weights);
  }
};
