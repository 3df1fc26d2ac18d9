// Products with IQ1_M: 16 x 16 weights of -1, 0, 1 and a shift of an eighth, each 16 with a scale, each eight an entry of 2048.
#include "constants/iq1_m.cuh"
#include "grid_words.cuh"

struct IQ1_M : Blocks256x16<constants::IQ1_M> {
  struct Raw {
    unsigned q[4], scales;  // q: of a run two entries, then a byte of their numbers' high bits and the shifts' signs
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    const int half = unit / 2, part = unit % 2;
    unsigned scales[2];
    read_last_words(block, kScales, scales);
    raw.scales = 0;
    // Runs 8 half + 2 run + part have bits 3 (2 run + part) of either 16 bits of their word.
    const unsigned own = half ? scales[1] : scales[0];
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      const unsigned tops = read_half_word(block, kQh + 8 * half + 2 * run) >> (8 * part) & 255;
      raw.q[run] = read_half_word(block, kQs + 16 * half + 4 * run + 2 * part) | tops << 16;
      raw.scales |= (own >> (16 * (run / 2) + 3 * (2 * (run % 2) + part)) & 7) << (8 * run);
    }
    const unsigned d = (scales[0] >> 12 & 0xf) | (scales[0] >> 24 & 0xf0) | (scales[1] >> 4 & 0xf00) |
                       (scales[1] >> 16 & 0xf000);
    raw.d = floats::from_half((unsigned short)d) * 0.125f;
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned top = raw.q[run] >> (16 + 4 * i);
      const unsigned number = (raw.q[run] >> (8 * i) & 255) | (top & 7) << 8;
      w[2 * i] = in_eighths(grid(2 * number), top >> 3 & 1);
      w[2 * i + 1] = in_eighths(grid(2 * number + 1), top >> 3 & 1);
    }
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) { return 2 * (int)(raw.scales >> (8 * run) & 7) + 1; }
};

#include "matmul_kernels.cuh"
