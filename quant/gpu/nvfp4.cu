// NVFP4: 4 x 16 weights of four bits (E2M1), looked up in a table, each 16 with a scale of eight (UE4M3).
#include "constants/nvfp4.cuh"
#include "dequantize.cuh"
#include "exponents.cuh"
#include "look_up.cuh"

struct NVFP4 : constants::NVFP4 {
  // Of 16 weights the first eight are low nibbles of eight bytes, the others high ones.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const float scale = half_of_small_float(block.byte(kD + index / 16));
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      const int at = (index + i) % 16;
      unsigned codes[1];
      block.template words<4>(kQs + index / 16 * 8 + at % 8, codes);
      codes[0] = look_up<constants::NVFP4>(codes[0] >> (at / 8 * 4) & 0x0f0f0f0fu);
      float four[4];
      scale_bytes<4>(codes, -128.0f, scale, four);
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[i + j] = four[j];
    }
  }
};
