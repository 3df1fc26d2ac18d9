// Products with Q1_0: 128 weights of one bit, a scale or its negative; the lowest bit of a byte first.
#include "constants/q1_0.cuh"
#include "grid_words.cuh"

struct Q1_0 : OneScale<Blocks64x16<constants::Q1_0>> {
  struct Raw {
    unsigned q[2];
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    read_words_after_half(block, kQs + 8 * unit, raw.q);
    raw.d = read_half(block, kD);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = less<1>(spread_bits(raw.q[run / 2] >> (16 * (run % 2) + 4 * i)) * 2);
  }
  static __device__ __forceinline__ void folded_words(const Raw& raw, int run, unsigned (&w)[4]) { words(raw, run, w); }
};

#include "matmul_kernels.cuh"
