// Products with IQ4_NL: a scale and 32 weights of four bits, looked up in a table.
#include "constants/iq4_nl.cuh"
#include "look_up.cuh"
#include "matmul_formats.cuh"

// x comes in the order of the nibbles.
struct IQ4_NL : Blocks32<constants::IQ4_NL> {
  static constexpr int kTerms = 2;
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
    look_up_32<constants::IQ4_NL>(raw.q, w);
  }
  static __device__ __forceinline__ void terms(const Raw& raw, int, unsigned (&w)[16]) {
    look_up_32_terms<constants::IQ4_NL>(raw.q, w);
  }
};

#include "matmul_kernels.cuh"
