// IQ1_S: a super-block of 8 x 32 weights of -1, 0, 1 and a shift, each 32 with a scale, each eight an entry of 2048.
#include "constants/iq1_s.cuh"
#include "grid_weights.cuh"

struct IQ1_S : constants::IQ1_S {
  // qh, of 32 weights: the high three bits of four entries' numbers, three of scale, the shift's sign.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const unsigned rest = block.template load<unsigned short>(kQh + index / 32 * 2);
    const float scale = __fmul_rn(block.half(kD), (float)(2 * (rest >> 12 & 7) + 1));
    const float shift = rest >> 15 ? -0.125f : 0.125f;
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int eight = (index + i) / 8, half = (index + i) / 4 % 2;
      const unsigned number = block.byte(kQs + eight) | (rest >> (3 * (eight % 4)) & 7) << 8;
      four_shifted(grid(number * 2 + half), shift, scale, weights + i);
    }
  }
};
