// IQ3_S: a super-block of 8 x 32 weights, each 32 with a scale, each four an entry of 512, each eight with eight signs.
#include "constants/iq3_s.cuh"
#include "grid_weights.cuh"

struct IQ3_S : constants::IQ3_S {
  // Of an entry's number eight bits stand in qs, the ninth in qh, eight entries a byte.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const unsigned s = block.byte(kScales + index / 64) >> (index / 32 % 2 * 4) & 15;
    const float scale = __fmul_rn(block.half(kD), (float)(1 + 2 * s));
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int four = (index + i) / 4;
      const unsigned number = block.byte(kQs + four) | (block.byte(kQh + four / 8) >> (four % 8) & 1) << 8;
      const unsigned signs = block.byte(kSigns + four / 2) >> (four % 2 * 4);
      four_with_signs(grid(number), signs, scale, weights + i);
    }
  }
};
