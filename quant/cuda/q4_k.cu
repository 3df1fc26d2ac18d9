// Q4_K: a super-block of 8 x 32 weights of four bits, each 32 with a scale and a minimum.
#include "dequantize.cuh"

struct Q4_K {
  static constexpr int kBlockWeights = 256, kBlockBytes = 144, kAlignment = 16, kPieces = 2;
  static constexpr int kQs = 16;  // the 16 bytes before it: d, dmin, 12 bytes of scales

  // 32 bytes hold two sub-blocks of 32 weights, one in each nibble. A sub-block's six-bit scale and
  // minimum: those of the first four lie whole in bytes 0-3 and 4-7 of the scales; of the others,
  // four bits in a nibble of bytes 8-11 and the upper two in the bytes of the first four.
  template <int kVector, bool kAligned, class Write>
  static __device__ __forceinline__ void decode(const unsigned char* block, int thread,
                                                Write write) {
    const int pair = thread / (32 / kVector), byte = thread % (32 / kVector) * kVector;
    unsigned head[4], q[kVector / 4];
    load_words<kAligned ? 16 : 1>(block, head);
    load_words<kAligned ? kVector : 1>(block + kQs + 32 * pair + byte, q);
    const float d = floats::from_half((unsigned short)head[0]);
    const float dmin = floats::from_half((unsigned short)(head[0] >> 16));
    // The two bytes of each group of four that belong to this pair of sub-blocks.
    const int shift = 16 * (pair % 2);
    const unsigned first = head[1] >> shift, second = head[2] >> shift, third = head[3] >> shift;
    const bool whole = pair < 2;
    const unsigned scales = whole ? first & 0x3f3fu : (third & 0x0f0fu) | (first >> 2 & 0x3030u);
    const unsigned minima =
        whole ? second & 0x3f3fu : (third >> 4 & 0x0f0fu) | (second >> 2 & 0x3030u);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      unsigned codes[kVector / 4];
#pragma unroll
      for (int i = 0; i < kVector / 4; ++i) codes[i] = q[i] >> (4 * part) & 0x0f0f0f0fu;
      float weights[kVector];
      scale_bytes_less<kVector>(codes, __fmul_rn(d, (float)(scales >> (8 * part) & 0xff)),
                                __fmul_rn(dmin, (float)(minima >> (8 * part) & 0xff)), weights);
      write(64 * pair + 32 * part + byte, weights);
    }
  }
};
