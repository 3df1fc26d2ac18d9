// IQ1_M: a super-block of 16 x 16 weights of -1, 0, 1 and a shift, each 16 with a scale, each eight an entry of 2048.
#include "constants/iq1_m.cuh"
#include "grid_weights.cuh"

struct IQ1_M : constants::IQ1_M {
  // qh, of an entry four bits: the high three of its number, the shift's sign. 16 bits have four scales of three
  // bits, and on top a nibble of the super-block's scale.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned scales[2];
    block.template words<8>(kScales, scales);
    const unsigned d = (scales[0] >> 12 & 0xf) | (scales[0] >> 24 & 0xf0) | (scales[1] >> 4 & 0xf00) |
                       (scales[1] >> 16 & 0xf000);
    const int run = index / 16;
    const unsigned s = (run < 8 ? scales[0] : scales[1]) >> (run / 4 % 2 * 16 + run % 4 * 3) & 7;
    const float scale = __fmul_rn(floats::from_half((unsigned short)d), (float)(2 * s + 1));
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int eight = (index + i) / 8, half = (index + i) / 4 % 2;
      const unsigned top = block.byte(kQh + eight / 2) >> (eight % 2 * 4);
      const unsigned number = block.byte(kQs + eight) | (top & 7) << 8;
      four_shifted(grid(number * 2 + half), top & 8 ? -0.125f : 0.125f, scale, weights + i);
    }
  }
};
