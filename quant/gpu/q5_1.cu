// Q5_1: a scale, a minimum and 32 weights of five bits.
#include "constants/q5_1.cuh"
#include "dequantize.cuh"
#include "five_bits.cuh"

struct Q5_1 : constants::Q5_1 {
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    five_bit_codes<constants::Q5_1, kVector>(block, index, codes);
    scale_bytes_less<kVector>(codes, block.half(kD), -block.half(kM), weights);
  }
};
