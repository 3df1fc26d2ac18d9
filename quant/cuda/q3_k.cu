// Q3_K: a super-block of 16 x 16 weights of three bits, each 16 with a six-bit scale.
#include "dequantize.cuh"

struct Q3_K {
  static constexpr int kBlockWeights = 256, kBlockBytes = 110, kAlignment = 2, kPieces = 4;
  static constexpr int kHmask = 0, kQs = 32, kScales = 96, kD = 108;  // byte offsets

  // The lower two bits lie as in Q2_K. Bit 4 * half + pair of hmask's 32 bytes is the third bit.
  // Of the 12 scale bytes, byte s % 8 holds the low four bits of scale s in its nibble s / 8, and
  // byte 8 + s % 4 the high two as its pair of bits s / 4.
  template <int kVector, bool kAligned, class Write>
  static __device__ __forceinline__ void decode(const unsigned char* block, int thread,
                                                Write write) {
    constexpr int kLoad = kAligned ? kAlignment : 1;
    const int half = thread / (32 / kVector), byte = thread % (32 / kVector) * kVector;
    unsigned q[kVector / 4], hmask[kVector / 4], scales[3];
    load_words<kLoad>(block + kQs + 32 * half + byte, q);
    load_words<kLoad>(block + kHmask + byte, hmask);
    load_words<kLoad>(block + kScales, scales);
    const float d = load_half<kAligned>(block + kD);
    const int shift = 8 * (byte / 16) + 4 * half;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {  // scale s = 8 * half + 2 * pair + byte / 16
      const unsigned low = scales[pair / 2] >> (16 * (pair % 2) + shift) & 15;
      const unsigned high = scales[2] >> (16 * (pair % 2) + shift + 2 * (pair / 2)) & 3;
      unsigned codes[kVector / 4];
#pragma unroll
      for (int i = 0; i < kVector / 4; ++i)
        codes[i] = (q[i] >> (2 * pair) & 0x03030303u) |
                   (hmask[i] >> (4 * half + pair) & 0x01010101u) << 2;
      float weights[kVector];
      scale_bytes<kVector>(codes, -4.0f, __fmul_rn(d, (float)((int)(low | high << 4) - 32)),
                           weights);
      write(128 * half + 32 * pair + byte, weights);
    }
  }
};
