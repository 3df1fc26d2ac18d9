// Products with IQ2_XS: 16 x 16 weights, each 16 with a scale, each eight an entry of 512 and their signs.
#include "constants/iq2_xs.cuh"
#include "grid_words.cuh"

struct IQ2_XS : Blocks256x16<constants::IQ2_XS> {
  struct Raw {
    unsigned q[4], scales;  // of a run: twice nine bits of entry and seven of signs; a nibble in a byte
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    const int half = unit / 2, part = unit % 2;
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      unsigned word[1];
      read_words_after_half(block, kQs + 32 * half + 8 * run + 4 * part, word);
      raw.q[run] = word[0];
    }
    unsigned scales[1];
    read_words_after_half(block, kScales + 4 * half, scales);
    raw.scales = scales[0] >> (4 * part);
    raw.d = read_half(block, kD) * 0.125f;
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned q = raw.q[run] >> (16 * i), signs = even_signs(q >> 9);
      w[2 * i] = with_signs(grid(2 * (q & 511)), signs);
      w[2 * i + 1] = with_signs(grid(2 * (q & 511) + 1), signs >> 4);
    }
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) { return 2 * (int)(raw.scales >> (8 * run) & 15) + 1; }
};

#include "matmul_kernels.cuh"
