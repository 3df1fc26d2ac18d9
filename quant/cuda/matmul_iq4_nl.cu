// Products with IQ4_NL: a scale and 32 weights of four bits, looked up in a table.
#include "matmul_formats.cuh"

// The table entries of the lower four nibbles, in their order (see iq4_nl.cu). `low`: the nibbles
// without their top bits, which stand in `which` as bit 2 of byte numbers 3, 2, 1, 0.
__device__ __forceinline__ unsigned look_up(unsigned low, unsigned which) {
  // -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113
  const unsigned first = ptx::permute(ptx::kept(0xbfad9881u), 0xf6eaddcfu, low);
  const unsigned second = ptx::permute(ptx::kept(0x26190d01u), 0x71594535u, low);
  return ptx::permute(first, second, which);
}

struct IQ4_NL : Blocks32 {
  static constexpr int kBlockBytes = 18;
  // A byte's nibbles are weights i and 16 + i. x comes in that order: 0, 16, 1, 17, ...
  static constexpr bool kInterleaved = true;
  struct Raw {
    unsigned q[4];
    float d;
  };
  static __device__ __forceinline__ Raw load(const Place& block, int) {
    Raw raw;
    raw.d = floats::from_half(read_half_and_words(block, raw.q));
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int, unsigned (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned which = (raw.q[i] >> 1 & ptx::kept(0x44444444u)) | 0x32103210u;
      const unsigned low = raw.q[i] & 0x77777777u;
      w[2 * i] = look_up(low, which);
      w[2 * i + 1] = look_up(low >> 16, which >> 16);
    }
  }
};

#include "matmul_kernels.cuh"
