// Products with Q4_K: a super-block of 8 x 32 weights of four bits, each 32 with a scale and a minimum.
#include "constants/q4_k.cuh"
#include "matmul_formats.cuh"

struct Q4_K : Blocks256x32<constants::Q4_K> {
  struct Raw {
    unsigned q[8], scales, minima;  // in the lower two bytes
    float d, dmin;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    unsigned head[4];
    read_words(block, kD, head);  // and dmin, 12 bytes of scales
    read_last_words(block, kQs + 32 * unit, raw.q);
    raw.d = floats::from_half((unsigned short)head[0]);
    raw.dmin = floats::from_half((unsigned short)(head[0] >> 16));
    const int shift = 16 * (unit % 2);  // see q4_k.cu
    const unsigned first = head[1] >> shift, second = head[2] >> shift, third = head[3] >> shift;
    raw.scales = unit < 2 ? first & 0x3f3fu : (third & 0x0f0fu) | (first >> 2 & 0x3030u);
    raw.minima = unit < 2 ? second & 0x3f3fu : (third >> 4 & 0x0f0fu) | (second >> 2 & 0x3030u);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = raw.q[i] >> (4 * run) & 0x0f0f0f0fu;
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) {
    return raw.scales >> (8 * run) & 0xff;
  }
  // Sums of 16 come in pairs (first halves of both runs), (second halves).
  static __device__ __forceinline__ int sums_word(int unit, int i) {
    return 4 * (unit / 2) + unit % 2 + 2 * i;
  }
  static __device__ __forceinline__ int dot_minima(const Raw& raw, const int (&sums)[2]) {
    return __dp2a_lo(sums[1], (int)raw.minima, __dp2a_lo(sums[0], (int)raw.minima, 0));
  }
  static __device__ __forceinline__ unsigned minima_word(const Raw& raw, int) { return raw.minima; }
  static __device__ __forceinline__ unsigned run_minimum(const Raw& raw, int run) {
    return raw.minima >> (8 * run) & 0xff;
  }
};

#include "matmul_kernels.cuh"
