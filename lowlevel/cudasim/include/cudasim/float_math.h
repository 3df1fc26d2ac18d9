// Floating-point functions and intrinsics of CUDA. Approximate ones are exact here: kernels are
// held to tolerances, and the device's own error shows only on a device.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>

template <class To, class From>
inline To cudasim_bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between types of different size");
  To result;
  memcpy(static_cast<void*>(&result), &value, sizeof result);
  return result;
}

inline float __int_as_float(int v) { return cudasim_bit_cast<float>(v); }
inline int __float_as_int(float v) { return cudasim_bit_cast<int>(v); }
inline float __uint_as_float(unsigned v) { return cudasim_bit_cast<float>(v); }
inline unsigned __float_as_uint(float v) { return cudasim_bit_cast<unsigned>(v); }
inline double __longlong_as_double(long long v) { return cudasim_bit_cast<double>(v); }
inline long long __double_as_longlong(double v) { return cudasim_bit_cast<long long>(v); }

// min and max take any two arithmetic types, as CUDA's overloads do; floats ignore a NaN.
template <class A, class B>
inline std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value,
                        std::common_type_t<A, B>>
max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return fmax((T)a, (T)b);
  return (T)a > (T)b ? (T)a : (T)b;
}
template <class A, class B>
inline std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value,
                        std::common_type_t<A, B>>
min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return fmin((T)a, (T)b);
  return (T)a < (T)b ? (T)a : (T)b;
}

// ---- operations that must not be fused with their neighbours ---------------------------------
// -ffp-contract=fast turns a * b + c into one fma, as nvcc does; the empty asm hides the product.
template <class T>
inline T cudasim_unfused(T value) {
#if defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}
inline float __fadd_rn(float a, float b) { return cudasim_unfused(cudasim_unfused(a) + cudasim_unfused(b)); }
inline float __fsub_rn(float a, float b) { return cudasim_unfused(cudasim_unfused(a) - cudasim_unfused(b)); }
inline float __fmul_rn(float a, float b) { return cudasim_unfused(a * b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
inline double __dadd_rn(double a, double b) { return cudasim_unfused(cudasim_unfused(a) + cudasim_unfused(b)); }
inline double __dsub_rn(double a, double b) { return cudasim_unfused(cudasim_unfused(a) - cudasim_unfused(b)); }
inline double __dmul_rn(double a, double b) { return cudasim_unfused(a * b); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// ---- approximate intrinsics --------------------------------------------------------------------
// glibc reserves some of these names for itself, hence macros.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __sincosf sincosf
#define __tanhf tanhf
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float rsqrt(float a) { return rsqrtf(a); }
inline float rcbrtf(float a) { return 1.0f / cbrtf(a); }

// ---- conversions: to the nearest even (rn), to zero (rz), down (rd), up (ru); they saturate and
// turn NaN into 0, where a C++ cast would be undefined -----------------------------------------
template <class Integer, class Float>
inline Integer cudasim_to_integer(Float v) {
  if (v != v) return 0;
  constexpr bool is_signed = std::is_signed<Integer>::value;
  const Float limit = (Float)ldexp(1.0, (int)sizeof(Integer) * 8 - is_signed);
  if (v >= limit) return (Integer)(is_signed ? ~((Integer)1 << (sizeof(Integer) * 8 - 1)) : ~(Integer)0);
  if (v <= (is_signed ? -limit : (Float)0))
    return is_signed ? (Integer)((Integer)1 << (sizeof(Integer) * 8 - 1)) : 0;
  return (Integer)v;
}
#define CUDASIM_TO_INTEGER(FLOAT, PREFIX, INTEGER, SUFFIX)                                          \
  inline INTEGER PREFIX##SUFFIX##_rn(FLOAT v) { return cudasim_to_integer<INTEGER>(nearbyint(v)); } \
  inline INTEGER PREFIX##SUFFIX##_rz(FLOAT v) { return cudasim_to_integer<INTEGER>(trunc(v)); }     \
  inline INTEGER PREFIX##SUFFIX##_rd(FLOAT v) { return cudasim_to_integer<INTEGER>(floor(v)); }     \
  inline INTEGER PREFIX##SUFFIX##_ru(FLOAT v) { return cudasim_to_integer<INTEGER>(ceil(v)); }
CUDASIM_TO_INTEGER(float, __float2, int, int)
CUDASIM_TO_INTEGER(float, __float2, unsigned, uint)
CUDASIM_TO_INTEGER(float, __float2, long long, ll)
CUDASIM_TO_INTEGER(float, __float2, unsigned long long, ull)
CUDASIM_TO_INTEGER(double, __double2, int, int)
CUDASIM_TO_INTEGER(double, __double2, unsigned, uint)
CUDASIM_TO_INTEGER(double, __double2, long long, ll)
CUDASIM_TO_INTEGER(double, __double2, unsigned long long, ull)
inline float __int2float_rn(int v) { return (float)v; }
inline float __uint2float_rn(unsigned v) { return (float)v; }
inline float __ll2float_rn(long long v) { return (float)v; }
inline float __ull2float_rn(unsigned long long v) { return (float)v; }
inline float __double2float_rn(double v) { return (float)v; }
inline double __int2double_rn(int v) { return v; }
