// IQ4_NL: a scale and 32 weights of four bits, looked up in a table; the low nibbles of 16 bytes first.
#include "constants/iq4_nl.cuh"
#include "dequantize.cuh"
#include "look_up.cuh"

struct IQ4_NL : constants::IQ4_NL {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<2>(kQs + index % 16, codes);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = look_up<constants::IQ4_NL>(codes[i] >> (index / 16 * 4) & 0x0f0f0f0fu);
    scale_bytes<kVector>(codes, -128.0f, block.half(kD), weights);
  }
};
