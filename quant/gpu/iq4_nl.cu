// IQ4_NL: a scale and 32 weights of four bits, looked up in a table; the low nibbles of 16 bytes first.
#include "dequantize.cuh"

// The table entries, plus 128, of four nibbles, one in each byte.
__device__ __forceinline__ unsigned look_up(unsigned nibbles) {
  // -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113
  constexpr unsigned kTable[4] = {0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u};
  // Side by side, they select a byte of either half of the table by their lower three bits; their
  // top bits then say which half it is: byte i of the first (selector i) or of the second (4 + i).
  nibbles = (nibbles | nibbles >> 4) & 0x00ff00ffu;
  nibbles = (nibbles | nibbles >> 8) & 0x0000ffffu;
  const unsigned selectors = nibbles & 0x7777u, which = (nibbles >> 1 & 0x4444u) | 0x3210u;
  return ptx::permute(ptx::permute(kTable[0], kTable[1], selectors),
                      ptx::permute(kTable[2], kTable[3], selectors), which);
}

struct IQ4_NL {
  static constexpr int kBlockWeights = 32, kBlockBytes = 18, kAlignment = 2;
  static constexpr int kD = 0, kQs = 2;  // byte offsets

  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    unsigned codes[kVector / 4];
    block.template words<2>(kQs + index % 16, codes);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i)
      codes[i] = look_up(codes[i] >> (index / 16 * 4) & 0x0f0f0f0fu);
    scale_bytes<kVector>(codes, -128.0f, block.half(kD), weights);
  }
};
