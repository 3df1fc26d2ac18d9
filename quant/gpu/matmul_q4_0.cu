// Products with Q4_0: a scale and 32 weights of four bits, less eight; the low nibbles first.
#include "constants/q4_0.cuh"
#include "matmul_formats.cuh"

struct Q4_0 : Blocks32<constants::Q4_0> {
  struct Raw {
    unsigned q[4];
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int) {
    Raw raw;
    raw.d = floats::from_half(read_half_and_words(block, raw.q));
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = less<8>(raw.q[i] & 0x0f0f0f0fu);
      w[4 + i] = less<8>(raw.q[i] >> 4 & 0x0f0f0f0fu);
    }
  }
};

#include "matmul_kernels.cuh"
