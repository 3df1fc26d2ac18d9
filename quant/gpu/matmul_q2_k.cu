// Products with Q2_K: a super-block of 16 x 16 weights of two bits, each 16 with a scale and a minimum.
#include "constants/q2_k.cuh"
#include "matmul_formats.cuh"

struct Q2_K : Blocks256x16<constants::Q2_K> {
  struct Raw {
    unsigned q[4], scales;
    float d, dmin;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    unsigned scales[2];
    read_words(block, kScales + 8 * (unit / 2), scales);
    read_words(block, kQs + 16 * unit, raw.q);
    raw.scales = __byte_perm(scales[0], scales[1], every_second(unit));
    raw.d = read_half(block, kD);
    raw.dmin = read_half(block, kDmin);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = raw.q[i] >> (2 * run) & 0x03030303u;
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) {
    return raw.scales >> (8 * run) & 15;
  }
  static __device__ __forceinline__ void folded_words(const Raw& raw, int run, unsigned (&w)[4]) {
    words(raw, run, w);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] *= factor(raw, run);  // 45 at most
  }
  static __device__ __forceinline__ unsigned minima(const Raw& raw) {
    return raw.scales >> 4 & 0x0f0f0f0fu;
  }
  static __device__ __forceinline__ int sums_word(int unit, int i) { return 2 * unit + i; }
  static __device__ __forceinline__ int dot_minima(const Raw& raw, const int (&sums)[2]) {
    const int four = (int)minima(raw);
    return __dp2a_hi(sums[1], four, __dp2a_lo(sums[0], four, 0));
  }
  static __device__ __forceinline__ unsigned minima_word(const Raw& raw, int i) {
    return i ? minima(raw) >> 16 : minima(raw) & 0xffff;
  }
  static __device__ __forceinline__ unsigned run_minimum(const Raw& raw, int run) {
    return minima(raw) >> (8 * run) & 0xff;
  }
};

#include "matmul_kernels.cuh"
