// Products with IQ2_XXS: 8 x 32 weights, each 32 with a scale, each eight an entry of 256 and their signs.
#include "constants/iq2_xxs.cuh"
#include "grid_words.cuh"

struct IQ2_XXS : Blocks256x32<constants::IQ2_XXS> {
  struct Raw {
    unsigned q[4];  // of either run: four entries; four times seven bits of signs, four of scale
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    read_words_after_half(block, kQs + 16 * unit, raw.q);
    raw.d = read_half(block, kD) * 0.125f;
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned number = raw.q[2 * run] >> (8 * i) & 255, signs = even_signs(raw.q[2 * run + 1] >> (7 * i));
      w[2 * i] = with_signs(grid(2 * number), signs);
      w[2 * i + 1] = with_signs(grid(2 * number + 1), signs >> 4);
    }
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) { return 2 * (int)(raw.q[2 * run + 1] >> 28) + 1; }
};

#include "matmul_kernels.cuh"
