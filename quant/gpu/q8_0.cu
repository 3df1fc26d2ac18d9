// Q8_0: 32 signed bytes and a scale.
#include "constants/q8_0.cuh"
#include "dequantize.cuh"

struct Q8_0 : constants::Q8_0 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<2>(kQs + index, codes);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i) codes[i] ^= 0x80808080u;  // plus 128
    scale_bytes<kVector>(codes, -128.0f, block.half(kD), weights);
  }
};
