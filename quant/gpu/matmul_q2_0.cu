// Products with Q2_0: 64 weights of two bits, less one, and a scale; four weights a byte, the lowest bits first.
#include "constants/q2_0.cuh"
#include "matmul_formats.cuh"

struct Q2_0 : OneScale<Blocks64x16<constants::Q2_0>> {
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
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned four = raw.q[run] >> (8 * i) & 255;
      w[i] = less<1>((four | four << 6 | four << 12 | four << 18) & 0x03030303u);
    }
  }
  static __device__ __forceinline__ void folded_words(const Raw& raw, int run, unsigned (&w)[4]) { words(raw, run, w); }
};

#include "matmul_kernels.cuh"
