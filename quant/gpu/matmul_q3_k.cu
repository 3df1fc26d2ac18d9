// Products with Q3_K: a super-block of 16 x 16 weights of three bits, each 16 with a six-bit scale.
#include "constants/q3_k.cuh"
#include "matmul_formats.cuh"

struct Q3_K : Blocks256x16<constants::Q3_K> {
  struct Raw {
    unsigned q[4], hmask[4], scales;  // four signed bytes
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    const int half = unit / 2, part = unit % 2;
    unsigned scales[3];
    read_words(block, kHmask + 16 * part, raw.hmask);
    read_words(block, kQs + 16 * unit, raw.q);
    read_words(block, kScales, scales);
    raw.d = read_half(block, kD);
#pragma unroll
    for (int i = 0; i < 4; ++i) raw.hmask[i] = ~raw.hmask[i] >> (4 * half);
    const unsigned low = __byte_perm(scales[0], scales[1], every_second(unit)) >> (4 * half);
    const unsigned high = __byte_perm(scales[2], 0, part ? 0x3131 : 0x2020) >> (4 * half);
    const unsigned six = (low & 0x0f0f0f0fu) | (high & 0x0303u) << 4 | (high & 0x0c0c0000u) << 2;
    raw.scales = less<32>(six);
    return raw;
  }
  // The third bit says whether not to take 4 away: 0xfc is -4.
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      w[i] = (raw.hmask[i] >> run & 0x01010101u) * 0xfc + (raw.q[i] >> (2 * run) & 0x03030303u);
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) {
    return signed_byte(raw.scales, run);
  }
  // kFoldOffset, 4, less than the products, which are -124 to 128: as bytes without a sign, 124 more, nothing
  // carries from one to the next.
  static __device__ __forceinline__ void folded_words(const Raw& raw, int run, unsigned (&w)[4]) {
    const int scale = factor(raw, run);
    const unsigned offset = (128 - kFoldOffset - 4 * scale) * 0x01010101u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned three =
          (raw.q[i] >> (2 * run) & 0x03030303u) | (~raw.hmask[i] >> run & 0x01010101u) << 2;
      w[i] = (three * scale + offset) ^ 0x80808080u;
    }
  }
};

#include "matmul_kernels.cuh"
