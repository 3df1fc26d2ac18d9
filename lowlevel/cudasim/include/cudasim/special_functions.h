// Functions that CUDA has and the C library has not: exact to a few units in the last place, through float64.
#pragma once
#include <math.h>

// ---- sin and cos of a multiple of pi ---------------------------------------------------------------
inline double sinpi(double x) {
  const double r = remainder(x, 2.0), magnitude = fabs(r);  // exact, -1 to 1
  if (r != r || magnitude == 0 || magnitude == 1) return r != r ? r : copysign(0.0, x);
  return copysign(sin(M_PI * (magnitude > 0.5 ? 1 - magnitude : magnitude)), r);
}
inline double cospi(double x) {
  const double magnitude = fabs(remainder(x, 2.0));
  if (magnitude != magnitude) return magnitude;
  return magnitude < 0.25 ? cos(M_PI * magnitude) : sinpi(0.5 - magnitude);
}
inline float sinpif(float x) { return (float)sinpi((double)x); }
inline float cospif(float x) { return (float)cospi((double)x); }
inline void sincospi(double x, double* s, double* c) { *s = sinpi(x), *c = cospi(x); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }

// ---- norms ---------------------------------------------------------------------------------------
inline double norm3d(double a, double b, double c) { return hypot(hypot(a, b), c); }
inline double norm4d(double a, double b, double c, double d) { return hypot(hypot(a, b), hypot(c, d)); }
inline float norm3df(float a, float b, float c) { return (float)norm3d(a, b, c); }
inline float norm4df(float a, float b, float c, float d) { return (float)norm4d(a, b, c, d); }
inline double norm(int n, const double* values) {
  double result = 0;
  for (int i = 0; i < n; ++i) result = hypot(result, values[i]);
  return result;
}
inline float normf(int n, const float* values) {
  double result = 0;
  for (int i = 0; i < n; ++i) result = hypot(result, (double)values[i]);
  return (float)result;
}
inline double rhypot(double a, double b) { return 1 / hypot(a, b); }
inline double rnorm3d(double a, double b, double c) { return 1 / norm3d(a, b, c); }
inline double rnorm4d(double a, double b, double c, double d) { return 1 / norm4d(a, b, c, d); }
inline float rhypotf(float a, float b) { return (float)rhypot(a, b); }
inline float rnorm3df(float a, float b, float c) { return (float)rnorm3d(a, b, c); }
inline float rnorm4df(float a, float b, float c, float d) { return (float)rnorm4d(a, b, c, d); }
inline float rnormf(int n, const float* values) { return 1.0f / normf(n, values); }
inline double rcbrt(double a) { return 1 / cbrt(a); }

// ---- the normal distribution and the error function's inverse --------------------------------------
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }

// The x with erfc(x) = y: Winitzki's closed form (good to 2e-3), then Halley's method.
inline double erfcinv(double y) {
  if (!(y >= 0 && y <= 2)) return NAN;
  if (y > 1) return -erfcinv(2 - y);
  if (y == 0) return HUGE_VAL;
  const double a = 0.147, l = log(y * (2 - y)), t = 2 / (M_PI * a) + l / 2;
  double x = sqrt(fmax(sqrt(t * t - l / a) - t, 0.0));
  for (int i = 0; i < 6; ++i) {
    const double slope = -2 / sqrt(M_PI) * exp(-x * x);
    const double step = (erfc(x) - y) / slope;
    x -= step / (1 + x * step);
  }
  return x;
}
inline double erfinv(double x) {
  if (fabs(x) > 0.5) return copysign(erfcinv(1 - fabs(x)), x);
  double result = x * sqrt(M_PI) / 2;
  for (int i = 0; i < 6; ++i) {
    const double step = (erf(result) - x) / (2 / sqrt(M_PI) * exp(-result * result));
    result -= step / (1 + result * step);
  }
  return result;
}
inline double normcdfinv(double p) { return -M_SQRT2 * erfcinv(2 * p); }
inline double erfcx(double x) {  // exp(x * x) * erfc(x), which overflows and underflows from about 26 on
  if (x < 25) return exp(x * x) * erfc(x);
  const double r = 1 / (2 * x * x);
  return (1 - r * (1 - 3 * r * (1 - 5 * r * (1 - 7 * r)))) / (x * sqrt(M_PI));
}
inline float normcdff(float x) { return (float)normcdf(x); }
inline float normcdfinvf(float p) { return (float)normcdfinv(p); }
inline float erfinvf(float x) { return (float)erfinv(x); }
inline float erfcinvf(float y) { return (float)erfcinv(y); }
inline float erfcxf(float x) { return (float)erfcx(x); }
