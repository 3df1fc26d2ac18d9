// Host stand-in for CUDA's cuda_bf16.h.
#pragma once
#include <cudasim/kernel_table.h>
#include <cudasim/small_float_type.h>

struct __nv_bfloat16_raw {
  unsigned short x;
};

struct __nv_bfloat16 {
  unsigned short __x;
  __nv_bfloat16() = default;
  __nv_bfloat16(__nv_bfloat16_raw raw) : __x(raw.x) {}
  __nv_bfloat16(float value) : __x(cudasim::float_to_bfloat16_bits(value)) {}
  __nv_bfloat16(double value) : __x(cudasim::round_to_16_bits<7>(value)) {}
  __nv_bfloat16(int value) : __nv_bfloat16((double)value) {}
  __nv_bfloat16(unsigned value) : __nv_bfloat16((double)value) {}
  operator float() const { return cudasim::bfloat16_bits_to_float(__x); }
  operator __nv_bfloat16_raw() const { return {__x}; }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
CUDASIM_TYPE_CODE(__nv_bfloat16, "bf2", 1)
CUDASIM_TYPE_CODE(__nv_bfloat162, "bf2", 2)

CUDASIM_SMALL_FLOAT_OPERATORS(__nv_bfloat16)
CUDASIM_SMALL_FLOAT_SCALARS(__nv_bfloat16, 7)
CUDASIM_SMALL_FLOAT_PAIRS(__nv_bfloat16, __nv_bfloat162)

inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __double2bfloat16(double v) { return __nv_bfloat16(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) { return {v, v}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat162 __float2bfloat162_rn(float v) { return {__nv_bfloat16(v), __nv_bfloat16(v)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__nv_bfloat16(a), __nv_bfloat16(b)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {(float)v.x, (float)v.y}; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
  return cudasim_bit_cast<__nv_bfloat16>(v);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.__x; }
inline __nv_bfloat16 __int2bfloat16_rn(int v) { return __nv_bfloat16(v); }
