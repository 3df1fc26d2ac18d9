// Products with Q4_1: a scale, a minimum and 32 weights of four bits; the low nibbles first.
#include "constants/q4_1.cuh"
#include "matmul_formats.cuh"

struct Q4_1 : Blocks32WithMinimum<constants::Q4_1> {
  struct Raw {
    unsigned q[4];
    float d, dmin;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int) {
    Raw raw;
    unsigned words[5];  // d and m
    read_last_words(block, kD, words);
    raw.d = floats::from_half((unsigned short)words[0]);
    raw.dmin = -floats::from_half((unsigned short)(words[0] >> 16));
#pragma unroll
    for (int i = 0; i < 4; ++i) raw.q[i] = words[1 + i];
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = raw.q[i] & 0x0f0f0f0fu;
      w[4 + i] = raw.q[i] >> 4 & 0x0f0f0f0fu;
    }
  }
};

#include "matmul_kernels.cuh"
