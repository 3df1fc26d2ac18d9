// Products with IQ1_S: 8 x 32 weights of -1, 0, 1 and a shift of an eighth, each 32 with a scale, each eight an entry of 2048.
#include "constants/iq1_s.cuh"
#include "grid_words.cuh"

struct IQ1_S : Blocks256x32<constants::IQ1_S> {
  struct Raw {
    unsigned q[2], rest;  // rest: of a run 16 bits: the numbers' high bits, a scale, the shift's sign
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    unsigned rest[1];
    read_words_after_half(block, kQs + 8 * unit, raw.q);
    read_words_after_half(block, kQh + 4 * unit, rest);
    raw.rest = rest[0];
    raw.d = read_half(block, kD) * 0.125f;
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[8]) {
    const unsigned rest = raw.rest >> (16 * run);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned number = (raw.q[run] >> (8 * i) & 255) | (rest >> (3 * i) & 7) << 8;
      w[2 * i] = in_eighths(grid(2 * number), rest >> 15 & 1);
      w[2 * i + 1] = in_eighths(grid(2 * number + 1), rest >> 15 & 1);
    }
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) { return 2 * (int)(raw.rest >> (16 * run + 12) & 7) + 1; }
};

#include "matmul_kernels.cuh"
