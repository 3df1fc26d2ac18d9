// Dequantises Q2_K: super-blocks of 256 weights in 84 bytes. 64 threads a super-block.
#include <cuda_fp16.h>

struct __align__(4) Q2K {
  unsigned char scales[16];
  unsigned char quants[64];
  __half d, dmin;
};

__device__ __forceinline__ void store(float* y, float v) { *y = v; }
__device__ __forceinline__ void store(__half* y, float v) { *y = __float2half(v); }

template <typename T>
__global__ void __launch_bounds__(256) dequantize_q2_k(const Q2K* __restrict__ x, T* __restrict__ y, int n_blocks) {
  const int index = blockIdx.x * (blockDim.x / 64) + threadIdx.x / 64;
  if (index >= n_blocks) return;
  const int thread = threadIdx.x % 64, half = thread / 32, lane = thread % 32;
  const Q2K* block = x + index;
  const unsigned char quants = __ldg(&block->quants[32 * half + lane]);
  const float d = __half2float(block->d), dmin = __half2float(block->dmin);
  T* out = y + (size_t)index * 256 + 128 * half + lane;
  for (int j = 0; j < 4; ++j) {
    const unsigned char scale = block->scales[8 * half + lane / 16 + 2 * j];
    const float product = __fmul_rn(d * (scale & 0xF), (float)(quants >> (2 * j) & 3));
    store(out + 32 * j, __fsub_rn(product, dmin * (scale >> 4)));
  }
}
