// y = softmax(x * scale + mask), one block a row.
//
// Planted bugs: BUG_WAR and BUG_RAW drop a barrier, BUG_WARP a __syncwarp, BUG_COUNT overruns a row,
// BUG_UNSET leaves shared memory unwritten that is read later.
#define NEG_INF __int_as_float(0xff800000) /* NVRTC has no INFINITY */

struct Max {
  __device__ static float start() { return NEG_INF; }
  __device__ static float combine(float a, float b) { return fmaxf(a, b); }
};
struct Sum {
  __device__ static float start() { return 0.f; }
  __device__ static float combine(float a, float b) { return a + b; }
};

template <class Op>
__device__ __forceinline__ float warp_reduce(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = Op::combine(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

template <class Op>
__device__ __forceinline__ float block_reduce(float v, float* partial) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = (blockDim.x + 31) >> 5;
  v = warp_reduce<Op>(v);
#ifndef BUG_WAR
  __syncthreads();  // partial[] may still be read from the reduction before
#endif
#ifdef BUG_UNSET
  if (lane == 0 && warp != 1) partial[warp] = v;
#else
  if (lane == 0) partial[warp] = v;
#endif
#ifndef BUG_RAW
  __syncthreads();
#endif
  v = lane < n_warps ? partial[lane] : Op::start();
  return warp_reduce<Op>(v);
}

extern "C" __global__ void softmax_rows(const float* __restrict__ x, const float* __restrict__ mask,
                                        float* __restrict__ y, int n_columns, float scale) {
  extern __shared__ float row_values[];
  __shared__ float partial[32];
  const size_t row = blockIdx.x;
  float largest = NEG_INF;
  for (int c = threadIdx.x; c < n_columns; c += blockDim.x) {
    const float v = x[row * n_columns + c] * scale + (mask ? mask[c] : 0.f);
    row_values[c] = v;
    largest = fmaxf(largest, v);
  }
  largest = block_reduce<Max>(largest, partial);
  float sum = 0.f;
  for (int c = threadIdx.x; c < n_columns; c += blockDim.x) {
    const float e = __expf(row_values[c] - largest);
    row_values[c] = e;
    sum += e;
  }
  sum = block_reduce<Sum>(sum, partial);
  const float inverse = 1.f / sum;
#ifdef BUG_COUNT
  for (int c = threadIdx.x; c <= n_columns; c += blockDim.x) y[row * n_columns + c] = inverse;
#else
  for (int c = threadIdx.x; c < n_columns; c += blockDim.x) y[row * n_columns + c] = row_values[c] * inverse;
#endif
}
