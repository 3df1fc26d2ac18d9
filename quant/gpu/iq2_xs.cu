// IQ2_XS: a super-block of 16 x 16 weights, each 16 with a scale, each eight an entry of 512 and their signs.
#include "constants/iq2_xs.cuh"
#include "grid_weights.cuh"

struct IQ2_XS : constants::IQ2_XS {
  // Of eight weights: nine bits of entry, seven of signs.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const unsigned s = block.byte(kScales + index / 32) >> (index / 16 % 2 * 4) & 15;
    const float scale = __fmul_rn(fine_scale(block.half(kD), s), 0.25f);
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int half = (index + i) / 4 % 2;
      const unsigned q = block.template load<unsigned short>(kQs + (index + i) / 8 * 2);
      four_with_signs(grid((q & 511) * 2 + half), even_signs(q >> 9) >> (4 * half), scale, weights + i);
    }
  }
};
