// Products with Q6_K: a super-block of 16 x 16 weights of six bits, each 16 with a signed byte as scale.
#include "constants/q6_k.cuh"
#include "matmul_formats.cuh"

struct Q6_K : Blocks256x16<constants::Q6_K> {
  struct Raw {
    unsigned low[2][4], high[4], scales;
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    const int half = unit / 2, part = unit % 2;
    unsigned scales[2];
    read_words(block, kQl + 64 * half + 16 * part, raw.low[0]);
    read_words(block, kQl + 64 * half + 16 * part + 32, raw.low[1]);
    read_words(block, kQh + 16 * unit, raw.high);
    read_words(block, kScales + 8 * half, scales);
    raw.d = read_half(block, kD);
    raw.scales = __byte_perm(scales[0], scales[1], every_second(unit));
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      w[i] = less<32>((raw.low[run % 2][i] >> (4 * (run / 2)) & 0x0f0f0f0fu) |
                      (raw.high[i] >> (2 * run) & 0x03030303u) << 4);
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) {
    return signed_byte(raw.scales, run);
  }
};

#include "matmul_kernels.cuh"
