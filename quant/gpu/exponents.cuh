// Scales of eight bits: powers of two (E8M0, of MX formats).
#pragma once

// Half of 2**(e - 127), e 0 to 255: of 0 and 1 it is subnormal.
__device__ __forceinline__ float half_power_of_two(unsigned e) {
  return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}
