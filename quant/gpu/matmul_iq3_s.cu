// Products with IQ3_S: 8 x 32 weights, each 32 with a scale, each four an entry of 512, each eight with eight signs.
#include "constants/iq3_s.cuh"
#include "grid_words.cuh"

struct IQ3_S : Blocks256x32<constants::IQ3_S> {
  struct Raw {
    unsigned q[4], signs[2], tops, scales;  // tops: ninth bits of the entries' numbers, a byte a run
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    read_words_after_half(block, kQs + 16 * unit, raw.q);
    read_words_after_half(block, kSigns + 8 * unit, raw.signs);
    raw.tops = read_half_word(block, kQh + 2 * unit);
    raw.scales = read_half_word(block, kScales + unit / 2 * 2) >> (8 * (unit % 2));
    raw.d = read_half(block, kD);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const unsigned number = (raw.q[2 * run + i / 4] >> (8 * (i % 4)) & 255) | (raw.tops >> (8 * run + i) & 1) << 8;
      w[i] = with_signs(grid(number), raw.signs[run] >> (4 * i));
    }
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) { return 2 * (int)(raw.scales >> (4 * run) & 15) + 1; }
};

#include "matmul_kernels.cuh"
