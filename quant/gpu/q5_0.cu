// Q5_0: a scale and 32 weights of five bits, less sixteen.
#include "constants/q5_0.cuh"
#include "dequantize.cuh"
#include "five_bits.cuh"

struct Q5_0 : constants::Q5_0 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    five_bit_codes<constants::Q5_0, kVector>(block, index, codes);
    scale_bytes<kVector>(codes, -16.0f, block.half(kD), weights);
  }
};
