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
  static constexpr int kBlockBytes = 18, kTerms = 2;
  // A byte's nibbles are weights i and 16 + i. x comes in that order: 0, 16, 1, 17, ...
  static constexpr bool kInterleaved = true;
  struct Raw {
    unsigned q[4];
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int) {
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
  // Byte numbers whose top bit is set give a sign instead: -1 from the table's lower half, which is
  // negative, 0 from the upper half. So an entry of the lower half is itself and 0, one of the upper half -1
  // and itself plus 1, and nothing has to choose between the halves.
  static __device__ __forceinline__ void terms(const Raw& raw, int, unsigned (&w)[16]) {
    const unsigned lower[2] = {ptx::kept(0xbfad9881u), 0xf6eaddcfu};
    const unsigned upper[2] = {ptx::kept(0x271a0e02u), 0x725a4636u};  // plus 1
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned q = raw.q[i], other = q ^ 0x88888888u;
      w[4 * i] = ptx::permute_or_sign(lower[0], lower[1], q);
      w[4 * i + 1] = ptx::permute_or_sign(upper[0], upper[1], other);
      w[4 * i + 2] = ptx::permute_or_sign(lower[0], lower[1], q >> 16);
      w[4 * i + 3] = ptx::permute_or_sign(upper[0], upper[1], other >> 16);
    }
  }
};

#include "matmul_kernels.cuh"
