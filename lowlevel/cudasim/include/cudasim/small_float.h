// Rounding to the 16-bit floating-point formats.
#pragma once
#include <math.h>
#include <stdint.h>

#include <cudasim/float_math.h>

namespace cudasim {

// float64 to a 16-bit format of `mantissa_bits` explicit bits, to the nearest even, in one step
// (going through float32 would round twice).
template <int mantissa_bits>
inline uint16_t round_to_16_bits(double value) {
  constexpr int exponent_bits = 15 - mantissa_bits, bias = (1 << (exponent_bits - 1)) - 1;
  constexpr uint16_t infinity = (uint16_t)(((1 << exponent_bits) - 1) << mantissa_bits);
  const uint16_t sign = cudasim_bit_cast<uint64_t>(value) >> 63 ? 0x8000 : 0;
  const double magnitude = fabs(value);
  if (magnitude != magnitude) return 0x7fff;
  if (magnitude == 0) return sign;
  int exponent;
  frexp(magnitude, &exponent);  // magnitude = m * 2**exponent, 0.5 <= m < 1
  const int unit = (exponent - 1 < 1 - bias ? 1 - bias : exponent - 1) - mantissa_bits;
  const double units = nearbyint(ldexp(magnitude, -unit));  // exact but for this rounding
  const double rounded = ldexp(units, unit);
  if (rounded >= ldexp(1.0, bias + 1)) return sign | infinity;
  // The bits are the units counted from zero: subnormals and normals line up.
  const int biased = unit + mantissa_bits + bias;  // 1 for subnormals too
  return sign | (uint16_t)(((uint32_t)(biased - 1) << mantissa_bits) + (uint32_t)units);
}

// a * b + c rounded once to float64 is not enough before the second rounding to 16 bits; forcing
// the last bit of an inexact sum to odd makes it so ("round to odd").
inline double fma_round_to_odd(double a, double b, double c) {
  const double product = a * b;  // exact: at most 11 + 11 bits
  const double sum = product + c;
  const double part = sum - product;
  const double error = (product - (sum - part)) + (c - part);
  if (error == 0 || !(fabs(sum) < HUGE_VAL)) return sum;
  uint64_t bits = cudasim_bit_cast<uint64_t>(sum);
  if (bits & 1) return sum;
  // Step towards the exact value: one up in magnitude if the error has the sum's sign, else down.
  bits += (error > 0) == (sum > 0) ? 1 : -1;
  return cudasim_bit_cast<double>(bits);
}

#if defined(__F16C__)
// The built-ins that immintrin.h wraps: the header itself is more text than all else a kernel is compiled with.
typedef short half_vector __attribute__((vector_size(16)));
typedef float float_vector __attribute__((vector_size(16)));
#endif

inline float half_bits_to_float(uint16_t bits) {
#if defined(__F16C__)
  return __builtin_ia32_vcvtph2ps(half_vector{(short)bits})[0];
#else
  const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 31)
    return cudasim_bit_cast<float>(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
  const float magnitude = exponent ? ldexpf((float)(mantissa | 0x400), (int)exponent - 25)
                                   : ldexpf((float)mantissa, -24);
  return sign ? -magnitude : magnitude;
#endif
}
inline uint16_t float_to_half_bits(float value) {
#if defined(__F16C__)
  if (value != value) return 0x7fff;  // as a device has it
  constexpr int to_nearest_even = 0;
  return (uint16_t)__builtin_ia32_vcvtps2ph(float_vector{value}, to_nearest_even)[0];
#else
  return round_to_16_bits<10>(value);
#endif
}

inline float bfloat16_bits_to_float(uint16_t bits) {
  return cudasim_bit_cast<float>((uint32_t)bits << 16);
}
inline uint16_t float_to_bfloat16_bits(float value) {
  const uint32_t bits = cudasim_bit_cast<uint32_t>(value);
  if (value != value) return 0x7fff;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace cudasim
