// Q2_0: 64 weights of two bits, less one, and a scale; four weights a byte, the lowest bits first.
#include "constants/q2_0.cuh"
#include "dequantize.cuh"

struct Q2_0 : constants::Q2_0 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i) {
      const unsigned four = block.byte(kQs + index / 4 + i);
      codes[i] = (four | four << 6 | four << 12 | four << 18) & 0x03030303u;
    }
    scale_bytes<kVector>(codes, -1.0f, block.half(kD), weights);
  }
};
