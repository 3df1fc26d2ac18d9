// Products with NVFP4: 4 x 16 weights of four bits (E2M1), looked up in a table, each 16 with a scale of eight (UE4M3).
#include "constants/nvfp4.cuh"
#include "exponents.cuh"
#include "look_up.cuh"
#include "matmul_formats.cuh"

struct NVFP4 : Blocks64x16<constants::NVFP4> {
  struct Raw {
    unsigned q[8], scales;
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int) {
    Raw raw;
    unsigned scales[1];
    read_words(block, kD, scales);
    read_last_words(block, kQs, raw.q);
    raw.scales = scales[0];
    raw.d = 1.0f;
    return raw;
  }
  // Of 16 weights the first eight are low nibbles of eight bytes, the others high ones.
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned q = raw.q[2 * run + i], low = q & 0x77777777u;
      const unsigned which = (q >> 1 & ptx::kept(0x44444444u)) | 0x32103210u;
      const unsigned first = look_up_low<constants::NVFP4>(low, which);
      const unsigned second = look_up_low<constants::NVFP4>(low >> 16, which >> 16);
      w[i] = ptx::permute(first, second, 0x6420), w[2 + i] = ptx::permute(first, second, 0x7531);
    }
  }
  static __device__ __forceinline__ float factor(const Raw& raw, int run) {
    return half_of_small_float(raw.scales >> (8 * run) & 255);
  }
};

#include "matmul_kernels.cuh"
