// IQ4_NL: a scale and 32 weights of four bits, looked up in a table; the low nibbles of 16 bytes first.
#include "dequantize.cuh"

// The table entries of eight nibbles: those of the low nibbles of a word's bytes, and of the high.
__device__ __forceinline__ void look_up(unsigned q, unsigned& low, unsigned& high) {
  // -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113
  constexpr unsigned kTable[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
  // Four nibbles select a byte of either half of the table by their lower three bits; their top
  // bits then say which half it is: byte i of the first (selector i) or of the second (4 + i).
  const unsigned top = q >> 1 & 0x44444444u;
  const unsigned which = top | 0x32103210u;
  unsigned values[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned selector = q >> (16 * i) & 0x7777u;
    values[i] = __byte_perm(__byte_perm(kTable[0], kTable[1], selector),
                            __byte_perm(kTable[2], kTable[3], selector), which >> (16 * i) & 0x7777u);
  }
  low = __byte_perm(values[0], values[1], 0x6420);
  high = __byte_perm(values[0], values[1], 0x7531);
}

struct IQ4_NL {
  static constexpr int kBlockWeights = 32, kBlockBytes = 18, kAlignment = 2, kPieces = 2;
  static constexpr int kD = 0, kQs = 2;  // byte offsets

  template <int kVector, bool kAligned, class Write>
  static __device__ __forceinline__ void decode(const unsigned char* block, int thread,
                                                Write write) {
    const int byte = kVector * thread;
    unsigned q[kVector / 4], values[2][kVector / 4];
    load_words<kAligned ? kAlignment : 1>(block + kQs + byte, q);
    const float d = load_half<kAligned>(block + kD);
#pragma unroll
    for (int i = 0; i < kVector / 4; ++i) look_up(q[i], values[0][i], values[1][i]);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float weights[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        weights[i] = __fmul_rn((float)signed_byte_of(values[part], i), d);
      write(16 * part + byte, weights);
    }
  }
};
