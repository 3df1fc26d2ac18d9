// Weights of five bits in blocks of 32: the low four in nibbles of 16 bytes, the low nibbles first; the fifth
// bits of all side by side in 32 bits, the first weight's lowest.
#pragma once

// Bits 0 to 3, each as the fifth bit of a byte. The factor puts them at 4, 12, 20 and 28 too, and no two
// bits in one place.
__device__ __forceinline__ unsigned fifth_bits(unsigned four) {
  return (four & 15) * 0x02040810u & 0x10101010u;
}

// The codes of weights `index` to `index` + kVector - 1 of a block, one a byte, for dequantize.cuh.
template <class Constants, int kVector, class Block>
__device__ __forceinline__ void five_bit_codes(const Block& block, int index, unsigned (&codes)[kVector / 4]) {
  constexpr int kMultiple = Constants::kQh % 4 ? 2 : 4;
  unsigned high[1];
  block.template words<kMultiple>(Constants::kQh, high);
  block.template words<kMultiple>(Constants::kQs + index % 16, codes);
#pragma unroll
  for (int i = 0; i < kVector / 4; ++i)
    codes[i] = (codes[i] >> (index / 16 * 4) & 0x0f0f0f0fu) | fifth_bits(high[0] >> (index + 4 * i));
}

// The codes of a block for products, from all of its bytes.
__device__ __forceinline__ void five_bit_words(const unsigned (&q)[4], unsigned high, unsigned (&w)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i] = (q[i] & 0x0f0f0f0fu) | fifth_bits(high >> (4 * i));
    w[4 + i] = (q[i] >> 4 & 0x0f0f0f0fu) | fifth_bits(high >> (16 + 4 * i));
  }
}
