// Products with Q5_0: a scale and 32 weights of five bits, less sixteen.
#include "constants/q5_0.cuh"
#include "five_bits.cuh"
#include "matmul_formats.cuh"

struct Q5_0 : Blocks32<constants::Q5_0> {
  struct Raw {
    unsigned high_and_q[5];
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int) {
    Raw raw;
    raw.d = floats::from_half(read_half_and_words(block, raw.high_and_q));
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int, unsigned (&w)[8]) {
    const unsigned q[4] = {raw.high_and_q[1], raw.high_and_q[2], raw.high_and_q[3], raw.high_and_q[4]};
    five_bit_words(q, raw.high_and_q[0], w);
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = less<16>(w[i]);
  }
};

#include "matmul_kernels.cuh"
