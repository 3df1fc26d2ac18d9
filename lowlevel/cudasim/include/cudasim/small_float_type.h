// The part that __half and __nv_bfloat16 have in common: arithmetic, comparisons, pairs and
// atomics. Included by cuda_fp16.h and cuda_bf16.h, each with its own names.
//
// Every operation goes through float32 and is rounded once: exact for + - * / and sqrt, because
// float32 has more than twice as many bits. fma takes the detour of small_float.h.
#pragma once
#include <cudasim/atomics.h>
#include <cudasim/small_float.h>
#include <cudasim/vector_types.h>

#define CUDASIM_SMALL_FLOAT_OPERATORS(H)                                                        \
  inline H operator+(H a, H b) { return H((float)a + (float)b); }                               \
  inline H operator-(H a, H b) { return H((float)a - (float)b); }                               \
  inline H operator*(H a, H b) { return H((float)a * (float)b); }                               \
  inline H operator/(H a, H b) { return H((float)a / (float)b); }                               \
  inline H operator-(H a) {                                                                     \
    a.__x ^= 0x8000;                                                                            \
    return a;                                                                                   \
  }                                                                                             \
  inline H& operator+=(H& a, H b) { return a = a + b; }                                         \
  inline H& operator-=(H& a, H b) { return a = a - b; }                                         \
  inline H& operator*=(H& a, H b) { return a = a * b; }                                         \
  inline H& operator/=(H& a, H b) { return a = a / b; }                                         \
  inline bool operator==(H a, H b) { return (float)a == (float)b; }                             \
  inline bool operator!=(H a, H b) { return (float)a != (float)b; }                             \
  inline bool operator<(H a, H b) { return (float)a < (float)b; }                               \
  inline bool operator>(H a, H b) { return (float)a > (float)b; }                               \
  inline bool operator<=(H a, H b) { return (float)a <= (float)b; }                             \
  inline bool operator>=(H a, H b) { return (float)a >= (float)b; }

#define CUDASIM_SMALL_FLOAT_SCALARS(H, MANTISSA_BITS)                                           \
  inline H __hadd(H a, H b) { return a + b; }                                                   \
  inline H __hsub(H a, H b) { return a - b; }                                                   \
  inline H __hmul(H a, H b) { return a * b; }                                                   \
  inline H __hdiv(H a, H b) { return a / b; }                                                   \
  inline H __hadd_rn(H a, H b) { return a + b; }                                                \
  inline H __hsub_rn(H a, H b) { return a - b; }                                                \
  inline H __hmul_rn(H a, H b) { return a * b; }                                                \
  inline H __hneg(H a) { return -a; }                                                           \
  inline H __habs(H a) {                                                                        \
    a.__x &= 0x7fff;                                                                            \
    return a;                                                                                   \
  }                                                                                             \
  inline H __hfma(H a, H b, H c) {                                                              \
    H result;                                                                                   \
    result.__x = cudasim::round_to_16_bits<MANTISSA_BITS>(                                      \
        cudasim::fma_round_to_odd((float)a, (float)b, (float)c));                               \
    return result;                                                                              \
  }                                                                                             \
  inline H __hmax(H a, H b) { return H(fmaxf((float)a, (float)b)); }                            \
  inline H __hmin(H a, H b) { return H(fminf((float)a, (float)b)); }                            \
  inline bool __heq(H a, H b) { return a == b; }                                                \
  inline bool __hne(H a, H b) { return a != b; }                                                \
  inline bool __hlt(H a, H b) { return a < b; }                                                 \
  inline bool __hle(H a, H b) { return a <= b; }                                                \
  inline bool __hgt(H a, H b) { return a > b; }                                                 \
  inline bool __hge(H a, H b) { return a >= b; }                                                \
  inline bool __hisnan(H a) { return (float)a != (float)a; }                                    \
  inline int __hisinf(H a) { return isinf((float)a) ? ((float)a > 0 ? 1 : -1) : 0; }            \
  inline H __hmax_nan(H a, H b) { return a != a ? a : b != b ? b : __hmax(a, b); }              \
  inline H __hmin_nan(H a, H b) { return a != a ? a : b != b ? b : __hmin(a, b); }              \
  inline H __hadd_sat(H a, H b) { return H(__saturatef((float)(a + b))); }                      \
  inline H __hsub_sat(H a, H b) { return H(__saturatef((float)(a - b))); }                      \
  inline H __hmul_sat(H a, H b) { return H(__saturatef((float)(a * b))); }                      \
  inline H __hfma_sat(H a, H b, H c) { return H(__saturatef((float)__hfma(a, b, c))); }         \
  inline H __hfma_relu(H a, H b, H c) { return __hmax_nan(__hfma(a, b, c), H(0.0f)); }          \
  inline H hfloor(H a) { return H(floorf((float)a)); }                                          \
  inline H hceil(H a) { return H(ceilf((float)a)); }                                            \
  inline H htrunc(H a) { return H(truncf((float)a)); }                                          \
  inline H hrint(H a) { return H(nearbyintf((float)a)); }                                       \
  inline H hsin(H a) { return H(sinf((float)a)); }                                              \
  inline H hcos(H a) { return H(cosf((float)a)); }                                              \
  inline H htanh(H a) { return H(tanhf((float)a)); }                                            \
  inline H hexp10(H a) { return H(exp10f((float)a)); }                                          \
  inline H hlog10(H a) { return H(log10f((float)a)); }                                          \
  inline H hexp(H a) { return H(expf((float)a)); }                                              \
  inline H hexp2(H a) { return H(exp2f((float)a)); }                                            \
  inline H hlog(H a) { return H(logf((float)a)); }                                              \
  inline H hlog2(H a) { return H(log2f((float)a)); }                                            \
  inline H hsqrt(H a) { return H(sqrtf((float)a)); }                                            \
  inline H hrsqrt(H a) { return H(rsqrtf((float)a)); }                                          \
  inline H hrcp(H a) { return H(1.0f / (float)a); }                                             \
  inline H atomicAdd(H* address, H value) {                                                     \
    return cudasim::atomic_update(address, [=](H old) { return old + value; });                 \
  }

#define CUDASIM_SMALL_FLOAT_PAIRS(H, H2)                                                        \
  inline H2 __hadd2(H2 a, H2 b) { return {a.x + b.x, a.y + b.y}; }                              \
  inline H2 __hsub2(H2 a, H2 b) { return {a.x - b.x, a.y - b.y}; }                              \
  inline H2 __hmul2(H2 a, H2 b) { return {a.x * b.x, a.y * b.y}; }                              \
  inline H2 __h2div(H2 a, H2 b) { return {a.x / b.x, a.y / b.y}; }                              \
  inline H2 __hneg2(H2 a) { return {-a.x, -a.y}; }                                              \
  inline H2 __habs2(H2 a) { return {__habs(a.x), __habs(a.y)}; }                                \
  inline H2 __hfma2(H2 a, H2 b, H2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
  inline H2 __hmax2(H2 a, H2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                \
  inline H2 __hmin2(H2 a, H2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                \
  inline H2 h2exp(H2 a) { return {hexp(a.x), hexp(a.y)}; }                                      \
  inline H2 h2exp2(H2 a) { return {hexp2(a.x), hexp2(a.y)}; }                                   \
  inline H2 h2log(H2 a) { return {hlog(a.x), hlog(a.y)}; }                                      \
  inline H2 h2log2(H2 a) { return {hlog2(a.x), hlog2(a.y)}; }                                   \
  inline H2 h2sqrt(H2 a) { return {hsqrt(a.x), hsqrt(a.y)}; }                                   \
  inline H2 h2rsqrt(H2 a) { return {hrsqrt(a.x), hrsqrt(a.y)}; }                                \
  inline H2 h2rcp(H2 a) { return {hrcp(a.x), hrcp(a.y)}; }                                      \
  inline H2 h2floor(H2 a) { return {hfloor(a.x), hfloor(a.y)}; }                                \
  inline H2 h2rint(H2 a) { return {hrint(a.x), hrint(a.y)}; }                                   \
  inline H2 __hfma2_relu(H2 a, H2 b, H2 c) { return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)}; } \
  inline H2 __heq2(H2 a, H2 b) { return {H((float)(a.x == b.x)), H((float)(a.y == b.y))}; }     \
  inline H2 __hlt2(H2 a, H2 b) { return {H((float)(a.x < b.x)), H((float)(a.y < b.y))}; }       \
  inline H2 __hgt2(H2 a, H2 b) { return {H((float)(a.x > b.x)), H((float)(a.y > b.y))}; }       \
  inline bool __hbeq2(H2 a, H2 b) { return a.x == b.x && a.y == b.y; }                          \
  inline H2 operator+(H2 a, H2 b) { return __hadd2(a, b); }                                     \
  inline H2 operator-(H2 a, H2 b) { return __hsub2(a, b); }                                     \
  inline H2 operator*(H2 a, H2 b) { return __hmul2(a, b); }                                     \
  inline H2 operator/(H2 a, H2 b) { return __h2div(a, b); }                                     \
  inline H2& operator+=(H2& a, H2 b) { return a = a + b; }                                      \
  inline H2& operator*=(H2& a, H2 b) { return a = a * b; }                                      \
  inline float __low2float(H2 a) { return a.x; }                                                \
  inline float __high2float(H2 a) { return a.y; }                                               \
  inline H2 __lows2##H2(H2 a, H2 b) { return {a.x, b.x}; }                                      \
  inline H2 __highs2##H2(H2 a, H2 b) { return {a.y, b.y}; }                                     \
  inline H2 __lowhigh2highlow(H2 a) { return {a.y, a.x}; }                                      \
  inline H2 atomicAdd(H2* address, H2 value) {                                                  \
    return cudasim::atomic_update(address, [=](H2 old) { return old + value; });                \
  }
