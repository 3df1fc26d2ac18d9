// Products with TQ2_0: a super-block of 256 weights of two bits, less one, and a scale.
#include "constants/tq2_0.cuh"
#include "matmul_formats.cuh"

struct TQ2_0 : OneScale<Blocks256x16<constants::TQ2_0>> {
  struct Raw {
    unsigned q[4];
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    read_words(block, kQs + 16 * unit, raw.q);
    raw.d = read_half(block, kD);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = less<1>(raw.q[i] >> (2 * run) & 0x03030303u);
  }
  static __device__ __forceinline__ void folded_words(const Raw& raw, int run, unsigned (&w)[4]) { words(raw, run, w); }
};

#include "matmul_kernels.cuh"
