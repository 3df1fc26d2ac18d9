// Products with MXFP4: a power of two and 32 weights of four bits, looked up in a table.
#include "constants/mxfp4.cuh"
#include "exponents.cuh"
#include "look_up.cuh"
#include "matmul_formats.cuh"

// x comes in the order of the nibbles. Blocks of 17 bytes lie at any address.
struct MXFP4 : Blocks32<constants::MXFP4> {
  struct Raw {
    unsigned q[4];
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int) {
    Raw raw;
    unsigned part[5];
#pragma unroll
    for (int i = 0; i < 5; ++i) part[i] = word_at(block, 4 * i);
    raw.d = half_power_of_two(part[0] >> (8 * block.shift) & 255);
    const unsigned selector = 0x3210 + 0x1111 * (block.shift + 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) raw.q[i] = ptx::permute(part[i], part[i + 1], selector);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int, unsigned (&w)[8]) {
    look_up_32<constants::MXFP4>(raw.q, w);
  }
};

#include "matmul_kernels.cuh"
