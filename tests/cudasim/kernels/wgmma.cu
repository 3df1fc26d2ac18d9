// One product of a warpgroup a kernel: shared memory as the test lays it out, each thread's registers
// loaded and stored as they are.
#include "wgmma.cuh"

struct Operands {
  int a_start, a_leading, a_stride, b_start, b_leading, b_stride, swizzle, accumulates;
};

__device__ __forceinline__ void fill_shared(uint4* shared, const uint4* image, int n_chunks) {
  for (int i = threadIdx.x; i < n_chunks; i += blockDim.x) shared[i] = image[i];
  ptx::fence_proxy_async();
  __syncthreads();
}

__device__ __forceinline__ ptx::MatrixDescriptor matrix(const uint4* shared, int start, int leading, int stride,
                                                        int swizzle) {
  return ptx::moved(ptx::matrix_descriptor(shared, leading, stride, (ptx::Swizzle)swizzle), start);
}

#define KERNELS(TYPE, N, TRANSPOSED, SUFFIX)                                                                \
  extern "C" __global__ void wgmma_##TYPE##_##N##_shared_##SUFFIX(const uint4* image, int n_chunks,        \
                                                                  const unsigned*, float* d, Operands o) { \
    extern __shared__ __align__(1024) uint4 shared[];                                                      \
    fill_shared(shared, image, n_chunks);                                                                  \
    float held[N / 8][4];                                                                                  \
    for (int i = 0; i < N / 2; ++i) held[i / 4][i % 4] = d[threadIdx.x * (N / 2) + i];                     \
    ptx::wgmma_fence();                                                                                    \
    ptx::wgmma_##TYPE<TRANSPOSED>(held, matrix(shared, o.a_start, o.a_leading, o.a_stride, o.swizzle),     \
                                  matrix(shared, o.b_start, o.b_leading, o.b_stride, o.swizzle),           \
                                  o.accumulates);                                                          \
    ptx::wgmma_commit();                                                                                   \
    ptx::wgmma_wait<0>();                                                                                  \
    ptx::wgmma_received(held);                                                                             \
    for (int i = 0; i < N / 2; ++i) d[threadIdx.x * (N / 2) + i] = held[i / 4][i % 4];                     \
  }                                                                                                        \
  extern "C" __global__ void wgmma_##TYPE##_##N##_registers_##SUFFIX(                                      \
      const uint4* image, int n_chunks, const unsigned* a, float* d, Operands o) {                         \
    extern __shared__ __align__(1024) uint4 shared[];                                                      \
    fill_shared(shared, image, n_chunks);                                                                  \
    float held[N / 8][4];                                                                                  \
    unsigned a_registers[4];                                                                               \
    for (int i = 0; i < N / 2; ++i) held[i / 4][i % 4] = d[threadIdx.x * (N / 2) + i];                     \
    for (int i = 0; i < 4; ++i) a_registers[i] = a[threadIdx.x * 4 + i];                                   \
    ptx::wgmma_fence();                                                                                    \
    ptx::wgmma_##TYPE<TRANSPOSED>(held, a_registers,                                                       \
                                  matrix(shared, o.b_start, o.b_leading, o.b_stride, o.swizzle),           \
                                  o.accumulates);                                                          \
    ptx::wgmma_commit();                                                                                   \
    ptx::wgmma_wait<0>();                                                                                  \
    ptx::wgmma_received(held);                                                                             \
    for (int i = 0; i < N / 2; ++i) d[threadIdx.x * (N / 2) + i] = held[i / 4][i % 4];                     \
  }
KERNELS(f16, 64, 0, rows)
KERNELS(f16, 64, 1, columns)
KERNELS(f16, 128, 0, rows)
KERNELS(f16, 128, 1, columns)
KERNELS(bf16, 64, 0, rows)
KERNELS(bf16, 64, 1, columns)
KERNELS(bf16, 128, 0, rows)
KERNELS(bf16, 128, 1, columns)

// A warpgroup copies a tile of 64 rows by 64 (K-major, swizzled by 128 bytes), another multiplies it by its
// own transpose, 16 deep at a time, twice: the second product goes on while the first is read. -DBUG_... leaves
// one thing out.
extern "C" __global__ void wgmma_pipeline(const unsigned short* rows, float* first, float* second) {
  extern __shared__ __align__(1024) unsigned short tile[];
  const int thread = threadIdx.x % 128;
  if (threadIdx.x < 128) {
    for (int i = thread; i < 64 * 8; i += 128) {
      const int row = i / 8, chunk = i % 8;
      ptx::cp_async_16(tile + row * 64 + (chunk ^ row % 8) * 8, rows + row * 64 + chunk * 8);
    }
    ptx::cp_async_commit();
#ifndef BUG_COPY_WAIT
    ptx::cp_async_wait<0>();
#endif
#ifndef BUG_PROXY
    ptx::fence_proxy_async();
#endif
    ptx::named_barrier_arrive(1, 256);
    ptx::named_barrier_sync(2, 256);
    for (int i = thread; i < 64 * 64; i += 128) tile[i] = 0;
    return;
  }
#ifndef BUG_READY
  ptx::named_barrier_sync(1, 256);
#else
  ptx::named_barrier_arrive(1, 256);
#endif
  const ptx::MatrixDescriptor matrix = ptx::matrix_descriptor(tile, 16, 1024);
  float d[8][4], e[8][4];
#ifndef BUG_FENCE
  ptx::wgmma_fence();
#endif
#pragma unroll
  for (int depth = 0; depth < 4; ++depth)
    ptx::wgmma_bf16<0>(d, ptx::moved(matrix, depth * 32), ptx::moved(matrix, depth * 32), depth > 0);
  ptx::wgmma_commit();
#pragma unroll
  for (int depth = 0; depth < 4; ++depth)
    ptx::wgmma_bf16<0>(e, ptx::moved(matrix, depth * 32), ptx::moved(matrix, depth * 32), depth > 0);
  ptx::wgmma_commit();
#ifndef BUG_WAIT
  ptx::wgmma_wait<1>();
#else
  ptx::wgmma_wait<2>();
#endif
  ptx::wgmma_received(d);
#ifdef BUG_FREE
  ptx::named_barrier_arrive(2, 256);
#endif
  for (int i = 0; i < 32; ++i) first[thread * 32 + i] = d[i / 4][i % 4];
  ptx::wgmma_wait<0>();
  ptx::wgmma_received(e);
#ifndef BUG_FREE
  ptx::named_barrier_arrive(2, 256);
#endif
  for (int i = 0; i < 32; ++i) second[thread * 32 + i] = e[i / 4][i % 4];
}
