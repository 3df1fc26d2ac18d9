// Products with IQ2_S: 16 x 16 weights, each 16 with a scale, each eight an entry of 1024 and eight signs.
#include "constants/iq2_s.cuh"
#include "grid_words.cuh"

struct IQ2_S : Blocks256x16<constants::IQ2_S> {
  struct Raw {
    unsigned q[4], tops, scales;  // q: of a run two entries, then their signs; tops: a nibble in a byte, scales too
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    const int half = unit / 2, part = unit % 2;
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      const int at = 16 * half + 4 * run + 2 * part;
      raw.q[run] = read_half_word(block, kQs + at) | read_half_word(block, kSigns + at) << 16;
    }
    unsigned tops[1], scales[1];
    read_words_after_half(block, kQh + 4 * half, tops);
    read_words_after_half(block, kScales + 4 * half, scales);
    raw.tops = tops[0] >> (4 * part), raw.scales = scales[0] >> (4 * part);
    raw.d = read_half(block, kD) * 0.125f;
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned number = (raw.q[run] >> (8 * i) & 255) | (raw.tops >> (8 * run + 2 * i) & 3) << 8;
      const unsigned signs = raw.q[run] >> (16 + 8 * i);
      w[2 * i] = with_signs(grid(2 * number), signs);
      w[2 * i + 1] = with_signs(grid(2 * number + 1), signs >> 4);
    }
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) { return 2 * (int)(raw.scales >> (8 * run) & 15) + 1; }
};

#include "matmul_kernels.cuh"
