// IQ2_XXS: a super-block of 8 x 32 weights, each 32 with a scale, each eight an entry of 256 and their signs.
#include "constants/iq2_xxs.cuh"
#include "grid_weights.cuh"

struct IQ2_XXS : constants::IQ2_XXS {
  // Of 32 weights: four bytes of entries, then four times seven bits of signs and four of scale.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned words[2];
    block.template words<2>(kQs + index / 32 * 8, words);
    const float scale = __fmul_rn(fine_scale(block.half(kD), words[1] >> 28), 0.25f);
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int at = (index + i) % 32, eight = at / 8, half = at / 4 % 2;
      const unsigned signs = even_signs(words[1] >> (7 * eight)) >> (4 * half);
      four_with_signs(grid((words[0] >> (8 * eight) & 255) * 2 + half), signs, scale, weights + i);
    }
  }
};
