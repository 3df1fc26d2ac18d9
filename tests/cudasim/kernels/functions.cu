// Functions of CUDA's that the C library has not, element by element: the tests know what each should give, here and
// on a GPU.
#include <cuda_fp16.h>
#include <math_constants.h>

extern "C" __global__ void rounded(const float* a, const float* b, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = a[i], y = b[i];
  float* o = out + 24 * i;
#define IN_MODE(AT, SUFFIX)                                                          \
  o[AT + 0] = __fadd##SUFFIX(x, y);                                                  \
  o[AT + 1] = __fsub##SUFFIX(x, y);                                                  \
  o[AT + 2] = __fmul##SUFFIX(x, y);                                                  \
  o[AT + 3] = __fdiv##SUFFIX(x, y);                                                  \
  o[AT + 4] = __fsqrt##SUFFIX(fabsf(x));                                             \
  o[AT + 5] = __fmaf##SUFFIX(x, y, x);                                               \
  o[AT + 6] = __double2float##SUFFIX((double)x * y);                                 \
  o[AT + 7] = __half2float(__float2half##SUFFIX(x));
  IN_MODE(0, _rz)
  IN_MODE(8, _ru)
  IN_MODE(16, _rd)
}

// x from 0 to 1.
extern "C" __global__ void special(const double* x, double* out, float* single, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double v = x[i];
  double* o = out + 9 * i;
  float* f = single + 9 * i;
  o[0] = sinpi(v), f[0] = sinpif((float)v);
  o[1] = cospi(v), f[1] = cospif((float)v);
  o[2] = normcdf(3 * v), f[2] = normcdff(3 * (float)v);
  o[3] = erfinv(v), f[3] = erfinvf((float)v);
  o[4] = erfcinv(v), f[4] = erfcinvf((float)v);
  o[5] = normcdfinv(v), f[5] = normcdfinvf((float)v);
  o[6] = erfcx(30 * v), f[6] = erfcxf(30 * (float)v);
  o[7] = norm3d(v, 2, 3), f[7] = norm3df((float)v, 2, 3);
  o[8] = rnorm4d(v, 2, 3, 4), f[8] = rnorm4df((float)v, 2, 3, 4);
}

extern "C" __global__ void packed(const unsigned* a, const unsigned* b, unsigned* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned x = a[i], y = b[i];
  unsigned* o = out + 34 * i;
#define BY_PART(AT, N)                                                                            \
  o[AT + 0] = __vaddss##N(x, y), o[AT + 1] = __vsubus##N(x, y), o[AT + 2] = __vabs##N(x);         \
  o[AT + 3] = __vabsss##N(x), o[AT + 4] = __vneg##N(x), o[AT + 5] = __vnegss##N(x);               \
  o[AT + 6] = __vabsdiffs##N(x, y), o[AT + 7] = __vavgu##N(x, y), o[AT + 8] = __vhaddu##N(x, y);  \
  o[AT + 9] = __vcmpges##N(x, y), o[AT + 10] = __vcmpltu##N(x, y), o[AT + 11] = __vseteq##N(x, y); \
  o[AT + 12] = __vsads##N(x, y), o[AT + 13] = __vsadu##N(x, y), o[AT + 14] = __vmins##N(x, y);
  BY_PART(0, 2)
  BY_PART(15, 4)
  o[30] = (unsigned)__hadd((int)x, (int)y);
  o[31] = (unsigned)__rhadd((int)x, (int)y);
  o[32] = (unsigned)((unsigned long long)__mul64hi((long long)x << 32, -(long long)y) & 0xffffffffu);
  o[33] = __usad(x, y, 7) + __urhadd(x, y) + __funnelshift_lc(x, y, 40);
}

// Each thread waits by the clock until the last one has set the flag.
extern "C" __global__ void wait_by_clock(float* out) {
  __shared__ volatile int flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
  const long long start = clock64();
  if (threadIdx.x == blockDim.x - 1) flag = 1;
  while (!flag && clock64() - start < 1000000000ll) {
  }
  out[threadIdx.x] = flag && clock64() >= start ? CUDART_PI_F : CUDART_INF_F;
}
