// Q4_0: a scale and 32 weights of four bits, less eight; those of the low nibbles of 16 bytes first.
#include "dequantize.cuh"

struct Q4_0 {
  static constexpr int kBlockWeights = 32, kBlockBytes = 18, kAlignment = 2, kPieces = 2;
  static constexpr int kD = 0, kQs = 2;  // byte offsets

  template <int kVector, bool kAligned, class Write>
  static __device__ __forceinline__ void decode(const unsigned char* block, int thread,
                                                Write write) {
    const int byte = kVector * thread;
    unsigned q[kVector / 4];
    load_words<kAligned ? kAlignment : 1>(block + kQs + byte, q);
    const float d = load_half<kAligned>(block + kD);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      unsigned codes[kVector / 4];
#pragma unroll
      for (int i = 0; i < kVector / 4; ++i) codes[i] = q[i] >> (4 * part) & 0x0f0f0f0fu;
      float weights[kVector];
      scale_bytes<kVector>(codes, -8.0f, d, weights);
      write(16 * part + byte, weights);
    }
  }
};
