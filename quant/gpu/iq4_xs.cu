// IQ4_XS: a super-block of 8 x 32 weights of four bits, looked up in a table, each 32 with a six-bit scale.
#include "constants/iq4_xs.cuh"
#include "dequantize.cuh"
#include "look_up.cuh"

struct IQ4_XS : constants::IQ4_XS {
  // Of the scales, nibble s of scales_l holds the low four bits of scale s, pair of bits s of scales_h the high two.
  // 16 bytes hold a sub-block, the low nibbles first.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<kVector>(kQs + index / 32 * 16 + index % 16, codes);
    const int s = index / 32;
    const unsigned low = block.byte(kScalesL + s / 2) >> (s % 2 * 4) & 15;
    const unsigned high = block.byte(kScalesH + s / 4) >> (s % 4 * 2) & 3;
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = look_up<constants::IQ4_XS>(codes[i] >> (index / 16 % 2 * 4) & 0x0f0f0f0fu);
    const float scale = (float)((int)(low | high << 4) - 32);
    scale_bytes<kVector>(codes, -128.0f, __fmul_rn(block.half(kD), scale), weights);
  }
};
