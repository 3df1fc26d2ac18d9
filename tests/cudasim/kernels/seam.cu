// One instruction of ptx.cuh a kernel, each lane's registers stored as they are: the tests compare
// them with the fragment layouts written out in NumPy, here and on a GPU.
#include "ptx.cuh"

#define LDMATRIX_KERNEL(NAME, N)                                                               \
  extern "C" __global__ void NAME##_kernel(const uint4* rows, unsigned* registers) {           \
    __shared__ uint4 tile[8 * N];                                                              \
    if (threadIdx.x < 8 * N) tile[threadIdx.x] = rows[threadIdx.x];                            \
    __syncthreads();                                                                           \
    unsigned r[N];                                                                             \
    ptx::NAME(r, &tile[threadIdx.x % (8 * N)]);                                                \
    for (int i = 0; i < N; ++i) registers[threadIdx.x * N + i] = r[i];                         \
  }
LDMATRIX_KERNEL(ldmatrix_x1, 1)
LDMATRIX_KERNEL(ldmatrix_x1_trans, 1)
LDMATRIX_KERNEL(ldmatrix_x2, 2)
LDMATRIX_KERNEL(ldmatrix_x2_trans, 2)
LDMATRIX_KERNEL(ldmatrix_x4, 4)
LDMATRIX_KERNEL(ldmatrix_x4_trans, 4)

#define MMA_KERNEL(NAME, D)                                                                    \
  extern "C" __global__ void NAME##_kernel(const unsigned* a, const unsigned* b, D* d) {       \
    const int lane = threadIdx.x;                                                              \
    unsigned a_registers[4];                                                                   \
    D d_registers[4];                                                                          \
    for (int i = 0; i < 4; ++i) a_registers[i] = a[4 * lane + i];                              \
    for (int i = 0; i < 4; ++i) d_registers[i] = d[4 * lane + i];                              \
    ptx::NAME(d_registers, a_registers, b[2 * lane], b[2 * lane + 1]);                         \
    for (int i = 0; i < 4; ++i) d[4 * lane + i] = d_registers[i];                              \
  }
MMA_KERNEL(mma_m16n8k16_f16, float)
MMA_KERNEL(mma_m16n8k16_bf16, float)
MMA_KERNEL(mma_m16n8k8_tf32, float)
MMA_KERNEL(mma_m16n8k32_s8, int)

// Each thread copies 16, 8 and 4 bytes, the last `missing` of each replaced by zeros.
extern "C" __global__ void cp_async_kernel(const unsigned* source, unsigned* result, int missing) {
  __shared__ __align__(16) unsigned tile[32][8];
  const unsigned* own = source + 8 * threadIdx.x;
  unsigned* row = tile[threadIdx.x];
  row[7] = own[7];
  if (missing) {
    ptx::cp_async_16_zfill(row, own, 16 - missing);
    ptx::cp_async_8_zfill(row + 4, own + 4, 8 - missing);
    ptx::cp_async_4_zfill(row + 6, own + 6, 4 - missing);
  } else {
    ptx::cp_async_16(row, own);
    ptx::cp_async_commit();
    ptx::cp_async_8(row + 4, own + 4);
    ptx::cp_async_4(row + 6, own + 6);
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 8; ++i) result[8 * threadIdx.x + i] = tile[31 - threadIdx.x][i];
}

// Each thread's 16 bytes, last thread first.
extern "C" __global__ void store_16_kernel(const uint4* source, uint4* result) {
  ptx::store_16(result + (31 - threadIdx.x), source[threadIdx.x]);
}

// Warp 0 produces, warp 1 consumes, warp 2 only synchronises with itself.
extern "C" __global__ void named_barrier_kernel(int* result) {
  __shared__ int box[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) {
    box[lane] = 3 * lane;
    __threadfence_block();
    ptx::named_barrier_arrive(1, 64);
  } else if (warp == 1) {
    ptx::named_barrier_sync(1, 64);
    result[lane] = box[31 - lane];
  } else {
    ptx::named_barrier_sync(2, 32);
  }
}

extern "C" __global__ void approx_kernel(const float* x, float* exp2_x, float* tanh_x, unsigned* tf32_x) {
  const int i = threadIdx.x;
  exp2_x[i] = ptx::exp2_approx(x[i]);
  tanh_x[i] = ptx::tanh_approx(x[i]);
  tf32_x[i] = ptx::to_tf32(x[i]);
}

extern "C" __global__ void permute_kernel(const unsigned* a, const unsigned* b, const unsigned* selectors,
                                          unsigned* bytes, unsigned* bytes_or_signs) {
  const int i = threadIdx.x;
  bytes[i] = ptx::permute(a[i], b[i], selectors[i] & 0xffff7777u);
  bytes_or_signs[i] = ptx::permute_or_sign(a[i], b[i], selectors[i]);
}
