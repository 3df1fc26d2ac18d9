// Scales of eight bits: powers of two (E8M0, of MX formats) and small floats (UE4M3, NVFP4's).
#pragma once

// Half of 2**(e - 127), e 0 to 255. Of 0 and 1 it is subnormal, which arithmetic here takes for zero (-ftz): as
// good as that in products, but not in what is decoded.
__device__ __forceinline__ float half_power_of_two(unsigned e) {
  return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

// value * 2**-149, subnormal or not, |value| < 2**31.
__device__ __forceinline__ float smallest_floats(int value) {
  const unsigned size = value < 0 ? -value : value;
  const unsigned bits = size < 1u << 23 ? size : __float_as_uint((float)size) - (149u << 23);
  return __uint_as_float(bits | (value < 0 ? 0x80000000u : 0u));
}

// Half of a UE4M3 number: 4 bits of exponent with a bias of 7, 3 of mantissa; the top bit means nothing.
__device__ __forceinline__ float half_of_small_float(unsigned byte) {
  const unsigned exponent = byte >> 3 & 15, mantissa = byte & 7;
  if (byte == 0x7f) return 0.0f;  // not a number: counts as zero, as in ggml
  if (exponent == 0) return (float)mantissa * 0.0009765625f;
  return __uint_as_float((exponent + 127 - 8) << 23 | mantissa << 20);
}
