// Q6_K: a super-block of 16 x 16 weights of six bits, each 16 with a signed byte as scale.
#include "dequantize.cuh"

struct Q6_K {
  static constexpr int kBlockWeights = 256, kBlockBytes = 210, kAlignment = 2, kPieces = 4;
  static constexpr int kQl = 0, kQh = 128, kScales = 192, kD = 208;  // byte offsets

  // Per half of 128 weights: nibbles of 64 bytes with the low four bits, the low nibbles first, and
  // 32 bytes with the high two bits of four times 32 weights.
  template <int kVector, bool kAligned, class Write>
  static __device__ __forceinline__ void decode(const unsigned char* block, int thread,
                                                Write write) {
    constexpr int kLoad = kAligned ? kAlignment : 1;
    const int half = thread / (32 / kVector), byte = thread % (32 / kVector) * kVector;
    unsigned low[2][kVector / 4], high[kVector / 4];
    load_words<kLoad>(block + kQl + 64 * half + byte, low[0]);
    load_words<kLoad>(block + kQl + 64 * half + 32 + byte, low[1]);
    load_words<kLoad>(block + kQh + 32 * half + byte, high);
    const float d = load_half<kAligned>(block + kD);
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      const int scale =
          (signed char)__ldg(block + kScales + 8 * half + 2 * group + byte / 16);
      unsigned codes[kVector / 4];
#pragma unroll
      for (int i = 0; i < kVector / 4; ++i)
        codes[i] = (low[group % 2][i] >> (4 * (group / 2)) & 0x0f0f0f0fu) |
                   (high[i] >> (2 * group) & 0x03030303u) << 4;
      float weights[kVector];
      scale_bytes<kVector>(codes, -32.0f, __fmul_rn(d, (float)scale), weights);
      write(128 * half + 32 * group + byte, weights);
    }
  }
};
