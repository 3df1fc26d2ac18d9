// Products with IQ4_XS: a super-block of 8 x 32 weights of four bits, looked up in a table, each 32 with a
// six-bit scale.
#include "constants/iq4_xs.cuh"
#include "look_up.cuh"
#include "matmul_formats.cuh"

// x comes in the order of the nibbles.
struct IQ4_XS : Blocks256x32<constants::IQ4_XS> {
  static constexpr int kTerms = 2;
  struct Raw {
    unsigned q[2][4], scales;  // two signed bytes
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    unsigned head[2];  // d and scales_h, scales_l
    read_words(block, kD, head);
    read_words(block, kQs + 32 * unit, raw.q[0]);
    read_last_words(block, kQs + 32 * unit + 16, raw.q[1]);
    raw.d = floats::from_half((unsigned short)head[0]);
    const unsigned low = head[1] >> (8 * unit), high = head[0] >> (16 + 4 * unit);
    raw.scales = less<32>((low & 0x0fu) | (low & 0xf0u) << 4 | (high & 3u) << 4 | (high & 12u) << 10);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[8]) {
    look_up_32<constants::IQ4_XS>(raw.q[run], w);
  }
  static __device__ __forceinline__ void terms(const Raw& raw, int run, unsigned (&w)[16]) {
    look_up_32_terms<constants::IQ4_XS>(raw.q[run], w);
  }
  static __device__ __forceinline__ int factor(const Raw& raw, int run) {
    return signed_byte(raw.scales, run);
  }
};

#include "matmul_kernels.cuh"
