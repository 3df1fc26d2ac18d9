// Q8_0: 32 signed bytes and a scale.
#include "dequantize.cuh"

struct Q8_0 {
  static constexpr int kBlockWeights = 32, kBlockBytes = 34, kAlignment = 2, kPieces = 1;
  static constexpr int kD = 0, kQs = 2;  // byte offsets

  template <int kVector, bool kAligned, class Write>
  static __device__ __forceinline__ void decode(const unsigned char* block, int thread,
                                                Write write) {
    unsigned q[kVector / 4];
    load_words<kAligned ? kAlignment : 1>(block + kQs + kVector * thread, q);
    const float d = load_half<kAligned>(block + kD);
    float weights[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) weights[i] = __fmul_rn((float)signed_byte_of(q, i), d);
    write(kVector * thread, weights);
  }
};
