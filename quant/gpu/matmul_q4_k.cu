// Products with Q4_K: a super-block of 8 x 32 weights of four bits, each 32 with a scale and a minimum.
#include "constants/q4_k.cuh"
#include "matmul_formats.cuh"
#include "six_bit_scales.cuh"

struct Q4_K : Blocks256x32WithMinima<constants::Q4_K> {
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
    six_bit_scales_and_minima(head, unit, raw.scales, raw.minima);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = raw.q[i] >> (4 * run) & 0x0f0f0f0fu;
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) {
    return raw.scales >> (8 * run) & 0xff;
  }
};

#include "matmul_kernels.cuh"
