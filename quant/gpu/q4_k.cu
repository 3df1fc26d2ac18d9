// Q4_K: a super-block of 8 x 32 weights of four bits, each 32 with a scale and a minimum.
#include "constants/q4_k.cuh"
#include "dequantize.cuh"

struct Q4_K : constants::Q4_K {
  // 32 bytes hold two sub-blocks of 32 weights, one in each nibble. A sub-block's six-bit scale and
  // minimum: those of the first four lie whole in bytes 0-3 and 4-7 of the scales; of the others,
  // four bits in a nibble of bytes 8-11 and the upper two in the bytes of the first four.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned head[4], codes[kVector / 4];
    block.template words<16>(kD, head);  // and dmin, 12 bytes of scales
    block.template words<kVector>(kQs + index / 64 * 32 + index % 32, codes);
    const int sub_block = index / 32, shift = sub_block % 4 * 8;
    const unsigned first = head[1] >> shift, second = head[2] >> shift, third = head[3] >> shift;
    const bool whole = sub_block < 4;
    const unsigned scale = whole ? first & 63 : (third & 15) | (first >> 2 & 48);
    const unsigned minimum = whole ? second & 63 : (third >> 4 & 15) | (second >> 2 & 48);
    const float d = floats::from_half((unsigned short)head[0]);
    const float dmin = floats::from_half((unsigned short)(head[0] >> 16));
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = codes[i] >> (sub_block % 2 * 4) & 0x0f0f0f0fu;
    scale_bytes_less<kVector>(codes, __fmul_rn(d, (float)scale), __fmul_rn(dmin, (float)minimum),
                              weights);
  }
};
