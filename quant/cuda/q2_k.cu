// Q2_K: a super-block of 16 x 16 weights of two bits, each 16 with a scale and a minimum.
#include "dequantize.cuh"

struct Q2_K {
  static constexpr int kBlockWeights = 256, kBlockBytes = 84, kAlignment = 4, kPieces = 4;
  static constexpr int kScales = 0, kQs = 16, kD = 80, kDmin = 82;  // byte offsets

  // Two bits at one place in 32 bytes belong to 32 consecutive weights; there are two times 32 bytes.
  template <int kVector, bool kAligned, class Write>
  static __device__ __forceinline__ void decode(const unsigned char* block, int thread,
                                                Write write) {
    constexpr int kLoad = kAligned ? kAlignment : 1;
    const int half = thread / (32 / kVector), byte = thread % (32 / kVector) * kVector;
    unsigned q[kVector / 4], scales[2];
    load_words<kLoad>(block + kQs + 32 * half + byte, q);
    load_words<kLoad>(block + kScales + 8 * half, scales);
    const float d = load_half<kAligned>(block + kD), dmin = load_half<kAligned>(block + kDmin);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const unsigned scale = scales[pair / 2] >> (16 * (pair % 2) + 8 * (byte / 16));
      unsigned codes[kVector / 4];
#pragma unroll
      for (int i = 0; i < kVector / 4; ++i) codes[i] = q[i] >> (2 * pair) & 0x03030303u;
      float weights[kVector];
      scale_bytes_less<kVector>(codes, __fmul_rn(d, (float)(scale & 15)),
                                __fmul_rn(dmin, (float)(scale >> 4 & 15)), weights);
      write(128 * half + 32 * pair + byte, weights);
    }
  }
};
