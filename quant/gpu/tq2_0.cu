// TQ2_0: a super-block of 256 weights of two bits, less one, and a scale.
#include "constants/tq2_0.cuh"
#include "dequantize.cuh"

struct TQ2_0 : constants::TQ2_0 {
  // Two bits at one place in 32 bytes belong to 32 consecutive weights; there are two times 32 bytes.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<kVector>(kQs + index / 128 * 32 + index % 32, codes);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i) codes[i] = codes[i] >> (index / 32 % 4 * 2) & 0x03030303u;
    scale_bytes<kVector>(codes, -1.0f, block.half(kD), weights);
  }
};
