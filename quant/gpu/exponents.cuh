// Scales of eight bits: powers of two (E8M0, of MX formats).
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
