// Products with IQ3_XXS: 8 x 32 weights, each 32 with a scale, each four an entry of 256, each eight with signs.
#include "constants/iq3_xxs.cuh"
#include "grid_words.cuh"

struct IQ3_XXS : Blocks256x32<constants::IQ3_XXS> {
  struct Raw {
    unsigned q[4], rest[2];  // rest: of a run four times seven bits of signs, four of scale
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    read_words_after_half(block, kQs + 16 * unit, raw.q);
    read_words_after_half(block, kScalesAndSigns + 8 * unit, raw.rest);
    raw.d = read_half(block, kD) * 0.25f;
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const unsigned number = raw.q[2 * run + i / 4] >> (8 * (i % 4)) & 255;
      w[i] = with_signs(grid(number), even_signs(raw.rest[run] >> (7 * (i / 2))) >> (4 * (i % 2)));
    }
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) { return 2 * (int)(raw.rest[run] >> 28) + 1; }
};

#include "matmul_kernels.cuh"
