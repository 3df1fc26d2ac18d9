// Float types: bits in memory, float32 in registers. Kernels need none of CUDA's headers for them,
// which CuPy's wheels do not bring. Like ptx.cuh, a seam: one instruction each on the device,
// exact arithmetic under the simulator.
#pragma once

#ifdef CUDASIM
#include <cudasim/small_float.h>
#endif

namespace floats {

__device__ __forceinline__ float from_half(unsigned short bits) {
#ifdef CUDASIM
  return cudasim::half_bits_to_float(bits);
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#endif
}

__device__ __forceinline__ float from_bfloat(unsigned short bits) {
  return __uint_as_float((unsigned)bits << 16);
}

// Two values rounded to the nearest even, the first in the lower 16 bits.
__device__ __forceinline__ unsigned to_halves(float low, float high) {
#ifdef CUDASIM
  return cudasim::float_to_half_bits(low) | (unsigned)cudasim::float_to_half_bits(high) << 16;
#else
  unsigned bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
#endif
}

__device__ __forceinline__ unsigned to_bfloats(float low, float high) {
#ifdef CUDASIM
  return cudasim::float_to_bfloat16_bits(low) |
         (unsigned)cudasim::float_to_bfloat16_bits(high) << 16;
#else
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
#endif
}

}  // namespace floats

// Each type: its Bits in memory, how many make a 16-byte vector, and both ways of conversion.
struct Float32 {
  using Bits = float;
  static constexpr int kVector = 4;
  static __device__ __forceinline__ float widen(Bits bits) { return bits; }
  static __device__ __forceinline__ Bits narrow(float value) { return value; }
  static __device__ __forceinline__ uint4 pack(const float (&v)[kVector]) {
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                      __float_as_uint(v[3]));
  }
};

struct Float16 {
  using Bits = unsigned short;
  static constexpr int kVector = 8;
  static __device__ __forceinline__ float widen(Bits bits) { return floats::from_half(bits); }
  static __device__ __forceinline__ Bits narrow(float value) {
    return (Bits)floats::to_halves(value, 0.0f);
  }
  static __device__ __forceinline__ uint4 pack(const float (&v)[kVector]) {
    return make_uint4(floats::to_halves(v[0], v[1]), floats::to_halves(v[2], v[3]),
                      floats::to_halves(v[4], v[5]), floats::to_halves(v[6], v[7]));
  }
};

struct Bfloat16 {
  using Bits = unsigned short;
  static constexpr int kVector = 8;
  static __device__ __forceinline__ float widen(Bits bits) { return floats::from_bfloat(bits); }
  static __device__ __forceinline__ Bits narrow(float value) {
    return (Bits)floats::to_bfloats(value, 0.0f);
  }
  static __device__ __forceinline__ uint4 pack(const float (&v)[kVector]) {
    return make_uint4(floats::to_bfloats(v[0], v[1]), floats::to_bfloats(v[2], v[3]),
                      floats::to_bfloats(v[4], v[5]), floats::to_bfloats(v[6], v[7]));
  }
};
