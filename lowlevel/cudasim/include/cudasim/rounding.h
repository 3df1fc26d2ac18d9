// Arithmetic and conversions rounded towards zero (rz), up (ru) and down (rd): the host's own, in that rounding mode.
#pragma once
#include <fenv.h>

#include <cudasim/float_math.h>

// As cudasim_unfused, but no operation may move across it either.
template <class T>
inline T cudasim_here(T value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value) : : "memory");
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value) : : "memory");
#endif
  return value;
}

template <class Result, class Operation, class... Operands>
inline Result cudasim_rounded(int mode, Operation operation, Operands... operands) {
  const int before = fegetround();
  fesetround(mode);
  const Result result = cudasim_here((Result)operation(cudasim_here(operands)...));
  fesetround(before);
  return result;
}

#define CUDASIM_IN_MODE(SUFFIX, MODE)                                                                          \
  inline float __fadd##SUFFIX(float a, float b) {                                                              \
    return cudasim_rounded<float>(MODE, [](float x, float y) { return x + y; }, a, b);                         \
  }                                                                                                            \
  inline float __fsub##SUFFIX(float a, float b) {                                                              \
    return cudasim_rounded<float>(MODE, [](float x, float y) { return x - y; }, a, b);                         \
  }                                                                                                            \
  inline float __fmul##SUFFIX(float a, float b) {                                                              \
    return cudasim_rounded<float>(MODE, [](float x, float y) { return x * y; }, a, b);                         \
  }                                                                                                            \
  inline float __fdiv##SUFFIX(float a, float b) {                                                              \
    return cudasim_rounded<float>(MODE, [](float x, float y) { return x / y; }, a, b);                         \
  }                                                                                                            \
  inline float __frcp##SUFFIX(float a) { return __fdiv##SUFFIX(1.0f, a); }                                     \
  inline float __fsqrt##SUFFIX(float a) {                                                                      \
    return cudasim_rounded<float>(MODE, [](float x) { return sqrtf(x); }, a);                                  \
  }                                                                                                            \
  inline float __fmaf##SUFFIX(float a, float b, float c) {                                                     \
    return cudasim_rounded<float>(MODE, [](float x, float y, float z) { return fmaf(x, y, z); }, a, b, c);     \
  }                                                                                                            \
  inline double __dadd##SUFFIX(double a, double b) {                                                           \
    return cudasim_rounded<double>(MODE, [](double x, double y) { return x + y; }, a, b);                      \
  }                                                                                                            \
  inline double __dsub##SUFFIX(double a, double b) {                                                           \
    return cudasim_rounded<double>(MODE, [](double x, double y) { return x - y; }, a, b);                      \
  }                                                                                                            \
  inline double __dmul##SUFFIX(double a, double b) {                                                           \
    return cudasim_rounded<double>(MODE, [](double x, double y) { return x * y; }, a, b);                      \
  }                                                                                                            \
  inline double __ddiv##SUFFIX(double a, double b) {                                                           \
    return cudasim_rounded<double>(MODE, [](double x, double y) { return x / y; }, a, b);                      \
  }                                                                                                            \
  inline double __drcp##SUFFIX(double a) { return __ddiv##SUFFIX(1.0, a); }                                    \
  inline double __dsqrt##SUFFIX(double a) {                                                                    \
    return cudasim_rounded<double>(MODE, [](double x) { return sqrt(x); }, a);                                 \
  }                                                                                                            \
  inline double __fma##SUFFIX(double a, double b, double c) {                                                  \
    return cudasim_rounded<double>(MODE, [](double x, double y, double z) { return fma(x, y, z); }, a, b, c);  \
  }                                                                                                            \
  inline float __double2float##SUFFIX(double v) {                                                              \
    return cudasim_rounded<float>(MODE, [](double x) { return (float)x; }, v);                                 \
  }                                                                                                            \
  inline float __int2float##SUFFIX(int v) { return __double2float##SUFFIX(v); }                                \
  inline float __uint2float##SUFFIX(unsigned v) { return __double2float##SUFFIX(v); }                          \
  inline double __ll2double##SUFFIX(long long v) {                                                             \
    return cudasim_rounded<double>(MODE, [v](double) { volatile long long x = v; return (double)x; }, 0.0);    \
  }                                                                                                            \
  inline float __ll2float##SUFFIX(long long v) {                                                               \
    return cudasim_rounded<float>(MODE, [v](float) { volatile long long x = v; return (float)x; }, 0.0f);      \
  }
CUDASIM_IN_MODE(_rz, FE_TOWARDZERO)
CUDASIM_IN_MODE(_ru, FE_UPWARD)
CUDASIM_IN_MODE(_rd, FE_DOWNWARD)

inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double a) { return 1.0 / a; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __ll2double_rn(long long v) { return (double)v; }
inline double __ull2double_rn(unsigned long long v) { return (double)v; }
inline double __uint2double_rn(unsigned v) { return v; }
inline double __hiloint2double(int high, int low) {
  return __longlong_as_double((long long)((unsigned long long)(unsigned)high << 32 | (unsigned)low));
}
inline int __double2hiint(double v) { return (int)(__double_as_longlong(v) >> 32); }
inline int __double2loint(double v) { return (int)__double_as_longlong(v); }
