// Q5_K: a super-block of 8 x 32 weights of five bits, each 32 with a scale and a minimum.
#include "constants/q5_k.cuh"
#include "dequantize.cuh"
#include "six_bit_scales.cuh"

struct Q5_K : constants::Q5_K {
  // The low four bits lie as in Q4_K. Bit s of qh's 32 bytes is the fifth bit of sub-block s.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned head[4], codes[kVector / 4], high[kVector / 4];
    block.template words<16>(kD, head);  // and dmin, 12 bytes of scales
    block.template words<kVector>(kQs + index / 64 * 32 + index % 32, codes);
    block.template words<kVector>(kQh + index % 32, high);
    const int sub_block = index / 32;
    unsigned scale, minimum;
    six_bit_scale_and_minimum(head, sub_block, scale, minimum);
    const float d = floats::from_half((unsigned short)head[0]);
    const float dmin = floats::from_half((unsigned short)(head[0] >> 16));
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = (codes[i] >> (sub_block % 2 * 4) & 0x0f0f0f0fu) | (high[i] >> sub_block & 0x01010101u) << 4;
    scale_bytes_less<kVector>(codes, __fmul_rn(d, (float)scale), __fmul_rn(dmin, (float)minimum),
                              weights);
  }
};
