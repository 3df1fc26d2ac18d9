// IQ2_S: a super-block of 16 x 16 weights, each 16 with a scale, each eight an entry of 1024 and eight signs.
#include "constants/iq2_s.cuh"
#include "grid_weights.cuh"

struct IQ2_S : constants::IQ2_S {
  // Of an entry's number eight bits stand in qs, the high two in qh, four entries a byte.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const unsigned s = block.byte(kScales + index / 32) >> (index / 16 % 2 * 4) & 15;
    const float scale = __fmul_rn(fine_scale(block.half(kD), s), 0.25f);
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int eight = (index + i) / 8, half = (index + i) / 4 % 2;
      const unsigned top = block.byte(kQh + eight / 4) >> (eight % 4 * 2) & 3;
      const unsigned number = block.byte(kQs + eight) | top << 8;
      four_with_signs(grid(number * 2 + half), block.byte(kSigns + eight) >> (4 * half), scale, weights + i);
    }
  }
};
