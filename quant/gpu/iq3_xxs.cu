// IQ3_XXS: a super-block of 8 x 32 weights, each 32 with a scale, each four an entry of 256, each eight with signs.
#include "constants/iq3_xxs.cuh"
#include "grid_weights.cuh"

struct IQ3_XXS : constants::IQ3_XXS {
  // Of 32 weights: eight bytes of entries; four times seven bits of signs and four of scale.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned rest[1];
    block.template words<2>(kScalesAndSigns + index / 32 * 4, rest);
    const float scale = __fmul_rn(fine_scale(block.half(kD), rest[0] >> 28), 0.5f);
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int four = (index + i) / 4, eight = four / 2 % 4;
      const unsigned signs = even_signs(rest[0] >> (7 * eight)) >> (4 * (four % 2));
      four_with_signs(grid(block.byte(kQs + four)), signs, scale, weights + i);
    }
  }
};
