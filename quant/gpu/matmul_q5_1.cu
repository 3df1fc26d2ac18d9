// Products with Q5_1: a scale, a minimum and 32 weights of five bits.
#include "constants/q5_1.cuh"
#include "five_bits.cuh"
#include "matmul_formats.cuh"

struct Q5_1 : Blocks32WithMinimum<constants::Q5_1> {
  struct Raw {
    unsigned q[4], high;
    float d, dmin;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int) {
    Raw raw;
    unsigned words[6];  // d and m, qh
    read_last_words(block, kD, words);
    raw.d = floats::from_half((unsigned short)words[0]);
    raw.dmin = -floats::from_half((unsigned short)(words[0] >> 16));
    raw.high = words[1];
#pragma unroll
    for (int i = 0; i < 4; ++i) raw.q[i] = words[2 + i];
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int, unsigned (&w)[8]) {
    five_bit_words(raw.q, raw.high, w);
  }
};

#include "matmul_kernels.cuh"
