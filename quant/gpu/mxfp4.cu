// MXFP4: a power of two and 32 weights of four bits (E2M1), looked up in a table; the low nibbles of 16 bytes first.
#include "constants/mxfp4.cuh"
#include "dequantize.cuh"
#include "exponents.cuh"
#include "look_up.cuh"

struct MXFP4 : constants::MXFP4 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<1>(kQs + index % 16, codes);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = look_up<constants::MXFP4>(codes[i] >> (index / 16 * 4) & 0x0f0f0f0fu);
    const unsigned e = block.byte(kE);
    if (e > 1) return scale_bytes<kVector>(codes, -128.0f, half_power_of_two(e), weights);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      weights[i] = smallest_floats(((int)(codes[i / 4] >> (8 * (i % 4)) & 255) - 128) * (int)(0x00200000u << e));
  }
};
