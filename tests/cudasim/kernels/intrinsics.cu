// Intrinsics element by element: the tests know what each should give.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// out[0..]: one integer intrinsic after another.
extern "C" __global__ void integers(const int* a, const int* b, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int x = a[i], y = b[i];
  const unsigned u = x, v = y;
  int* o = out + 16 * i;
  o[0] = __dp4a(x, y, 7);
  o[1] = (int)__dp4a(u, v, 7u);
  o[2] = (int)__byte_perm(u, v, 0x7531);
  o[3] = (int)__byte_perm(u, v, 0xBA98);
  o[4] = __popc(u);
  o[5] = __clz(x);
  o[6] = __ffs(x);
  o[7] = (int)__brev(u);
  o[8] = __mulhi(x, y);
  o[9] = (int)__umulhi(u, v);
  o[10] = (int)__funnelshift_l(u, v, 11);
  o[11] = (int)__funnelshift_r(u, v, 11);
  o[12] = (int)__vsubss4(u, v);
  o[13] = (int)__vadd4(u, v);
  o[14] = (int)__vcmpne4(u, v);
  o[15] = __dp2a_lo(x, y, 5) ^ __dp2a_hi(x, y, 5);
}

template <typename T, typename T2>
__device__ void small_floats(const T* a, const T* b, const T* c, T* out, int i) {
  const T x = a[i], y = b[i], z = c[i];
  T* o = out + 8 * i;
  o[0] = x + y;
  o[1] = x - y;
  o[2] = x * y;
  o[3] = x / y;
  o[4] = __hfma(x, y, z);
  o[5] = __hmax(x, y);
  T2 pair;
  pair.x = x;
  pair.y = y;
  const T2 sum = __hfma2(pair, pair, pair);
  o[6] = sum.x;
  o[7] = sum.y;
}
extern "C" __global__ void halves(const __half* a, const __half* b, const __half* c, __half* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) small_floats<__half, __half2>(a, b, c, out, i);
}
extern "C" __global__ void bfloats(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c,
                                   __nv_bfloat16* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) small_floats<__nv_bfloat16, __nv_bfloat162>(a, b, c, out, i);
}

extern "C" __global__ void convert(const float* x, __half* h, __nv_bfloat16* b, float* h_back, float* b_back,
                                   int* rounded, double* fused, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  h[i] = __float2half(x[i]);
  b[i] = __float2bfloat16(x[i]);
  h_back[i] = __half2float(h[i]);
  b_back[i] = __bfloat162float(b[i]);
  rounded[i] = __float2int_rn(x[i]);
  const float square = __fmul_rn(x[i], x[i]);
  fused[2 * i] = __fsub_rn(square, x[i]);  // two roundings
  fused[2 * i + 1] = fmaf(x[i], x[i], -x[i]);  // one
}

// The reverse of each warp's values by shuffles, their votes and matches, with the last warp partial.
extern "C" __global__ void warps(const int* x, int* out) {
  const int lane = threadIdx.x % 32, n = blockDim.x;
  const unsigned mask = threadIdx.x / 32 == n / 32 ? (1u << n % 32) - 1 : 0xffffffffu;
  const int v = x[threadIdx.x];
  int* o = out + 8 * threadIdx.x;
  o[0] = __shfl_sync(mask, v, 3);
  o[1] = __shfl_up_sync(mask, v, 2);
  o[2] = __shfl_down_sync(mask, v, 1, 4);
  o[3] = __shfl_xor_sync(mask, v, 1);
  o[4] = (int)__ballot_sync(mask, v & 1);
  o[5] = (int)__match_any_sync(mask, v & 3);
  o[6] = __reduce_max_sync(mask, v);
  o[7] = __any_sync(mask, v == 5) + 2 * __all_sync(mask, v >= 0) + (lane == 0 ? 4 : 0);
}

// Every kind of parameter.
struct Shape {
  int rows, columns;
  float scale;
};
template <typename T>
__device__ void put(T* out, T value) { *out = value; }
extern "C" __global__ void parameters(signed char i8, unsigned char u8, short i16, unsigned short u16, int i32,
                                      unsigned u32, long long i64, unsigned long long u64, float f32, double f64,
                                      bool flag, __half f16, Shape shape, const float* missing, double* out) {
  const double values[] = {(double)i8, (double)u8, (double)i16, (double)u16, (double)i32, (double)u32,
                           (double)i64, (double)u64, f32, f64, (double)flag, (float)f16, (double)shape.rows,
                           (double)shape.columns, shape.scale, (double)(missing == nullptr)};
  for (int i = 0; i < 16; ++i) put(&out[i], values[i]);
}

// Sums several arrays through a table of pointers.
extern "C" __global__ void sum_table(const float* const* __restrict__ arrays, int n_arrays, float* __restrict__ out) {
  float sum = 0;
  for (int i = 0; i < n_arrays; ++i) sum += arrays[i][threadIdx.x];
  out[threadIdx.x] = sum;
}

extern "C" __global__ void greet(int n) {
  if (threadIdx.x == 0) printf("block %d of %d says %s\n", blockIdx.x, n, "hello");
}

extern "C" __global__ void where_am_i(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 1000 + thread;
}

extern "C" __global__ void stride_kernel(float* x, long long stride, int n) {
  if (threadIdx.x < n) x[threadIdx.x * stride] += 1;
}

extern "C" __global__ void denormal(float* x) { x[0] = x[0] * 0.5f; }

extern "C" __global__ void contracted(const float* x, float* y) { y[0] = x[0] * x[1] + x[2]; }
