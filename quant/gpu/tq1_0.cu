// TQ1_0: a super-block of 256 weights of -1, 0, 1, five in a byte, and a scale.
#include "constants/tq1_0.cuh"
#include "dequantize.cuh"

struct TQ1_0 : constants::TQ1_0 {
  // Bytes are fractions of 256 in base 3: the first digit of 32 bytes, their second, ...; of 16; of qh's 4.
  template <int kVector, class Block>
  static __device__ __forceinline__ void decode(const Block& block, int index,
                                                float (&weights)[kVector]) {
    const float d = block.half(kD);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int at = index + i;
      const int digit = at < 160 ? at / 32 : at < 240 ? (at - 160) / 16
                                                      : (at - 240) / 4;
      const int byte = at < 160 ? at % 32 : at < 240 ? 32 + at % 16
                                                     : kQh - kQs + at % 4;
      const unsigned power = digit == 0 ? 1 : digit == 1 ? 3
                                          : digit == 2   ? 9
                                          : digit == 3   ? 27
                                                         : 81;
      const unsigned top = (block.byte(kQs + byte) * power & 255) * 3 >> 8;
      weights[i] = __fmul_rn((float)((int)top - 1), d);
    }
  }
};
