// Products with Q8_0: 32 signed bytes and a scale.
#include "constants/q8_0.cuh"
#include "matmul_formats.cuh"

struct Q8_0 : Blocks32<constants::Q8_0> {
  struct Raw {
    unsigned q[8];
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
    for (int i = 0; i < 8; ++i) w[i] = raw.q[i];
  }
};

#include "matmul_kernels.cuh"
