// Host stand-in for CUDA's cuda_fp16.h.
#pragma once
#include <cudasim/kernel_table.h>
#include <cudasim/small_float_type.h>

struct __half_raw {
  unsigned short x;
};

struct __half {
  unsigned short __x;
  __half() = default;
  __half(__half_raw raw) : __x(raw.x) {}
  __half(float value) : __x(cudasim::float_to_half_bits(value)) {}
  __half(double value) : __x(cudasim::round_to_16_bits<10>(value)) {}
  __half(int value) : __half((double)value) {}
  __half(unsigned value) : __half((double)value) {}
  __half(short value) : __half((float)value) {}
  __half(unsigned short value) : __half((float)value) {}
  __half(long long value) : __half((double)value) {}
  operator float() const { return cudasim::half_bits_to_float(__x); }
  operator __half_raw() const { return {__x}; }
};
struct alignas(4) __half2 {
  __half x, y;
};
typedef __half half;
typedef __half2 half2;
CUDASIM_TYPE_CODE(__half, "f2", 1)
CUDASIM_TYPE_CODE(__half2, "f2", 2)

CUDASIM_SMALL_FLOAT_OPERATORS(__half)
CUDASIM_SMALL_FLOAT_SCALARS(__half, 10)
CUDASIM_SMALL_FLOAT_PAIRS(__half, __half2)

inline __half __float2half(float v) { return __half(v); }
inline __half __float2half_rn(float v) { return __half(v); }
// Rounded otherwise than to the nearest: the neighbours of what is nearest.
inline __half cudasim_half_toward(float v, bool down, bool up) {
  __half nearest(v);
  if (!((float)nearest > v && down) && !((float)nearest < v && up)) return nearest;
  // Bits count magnitudes: away from zero is one more. The smallest negative one lies below +0.
  const bool to_lower = (float)nearest > v, is_negative = nearest.__x >> 15;
  if ((nearest.__x & 0x7fff) == 0) nearest.__x = to_lower ? 0x8001 : 0x0001;
  else nearest.__x += to_lower == is_negative ? 1 : -1;
  return nearest;
}
inline __half __float2half_rd(float v) { return cudasim_half_toward(v, true, false); }
inline __half __float2half_ru(float v) { return cudasim_half_toward(v, false, true); }
inline __half __float2half_rz(float v) { return cudasim_half_toward(v, v > 0, v < 0); }
inline __half __double2half(double v) { return __half(v); }
inline float __half2float(__half v) { return v; }
inline __half2 __half2half2(__half v) { return {v, v}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline __half2 __low2half2(__half2 v) { return {v.x, v.x}; }
inline __half2 __high2half2(__half2 v) { return {v.y, v.y}; }
inline __half2 __float2half2_rn(float v) { return {__half(v), __half(v)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline float2 __half22float2(__half2 v) { return {(float)v.x, (float)v.y}; }
inline __half __ushort_as_half(unsigned short v) { return cudasim_bit_cast<__half>(v); }
inline unsigned short __half_as_ushort(__half v) { return v.__x; }
inline __half __short_as_half(short v) { return cudasim_bit_cast<__half>(v); }
inline short __half_as_short(__half v) { return (short)v.__x; }
inline __half __int2half_rn(int v) { return __half(v); }
inline __half __uint2half_rn(unsigned v) { return __half(v); }
inline __half __short2half_rn(short v) { return __half(v); }
inline int __half2int_rn(__half v) { return __float2int_rn(v); }
inline int __half2int_rz(__half v) { return __float2int_rz(v); }
inline int __half2int_rd(__half v) { return __float2int_rd(v); }
inline int __half2int_ru(__half v) { return __float2int_ru(v); }
inline unsigned __half2uint_rn(__half v) { return __float2uint_rn(v); }
inline unsigned __half2uint_rz(__half v) { return __float2uint_rz(v); }
inline short __half2short_rn(__half v) { return cudasim_to_integer<short>(nearbyintf(v)); }
inline short __half2short_rz(__half v) { return cudasim_to_integer<short>(truncf(v)); }
inline unsigned short __half2ushort_rn(__half v) { return cudasim_to_integer<unsigned short>(nearbyintf(v)); }
inline unsigned short __half2ushort_rz(__half v) { return cudasim_to_integer<unsigned short>(truncf(v)); }
inline __half __ushort2half_rn(unsigned short v) { return __half(v); }
inline __half __ll2half_rn(long long v) { return __half(v); }
