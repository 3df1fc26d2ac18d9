// Cooperative groups, wmma and the pipeline's primitives.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_pipeline.h>
#include <mma.h>

namespace cg = cooperative_groups;
using namespace nvcuda;

// A block of 64: what tiles of 8 make of x.
extern "C" __global__ void tiles(const int* x, int* out) {
  const cg::thread_block block = cg::this_thread_block();
  const auto warp = cg::tiled_partition<32>(block);
  const auto tile = cg::tiled_partition<8>(warp);
  const int v = x[block.thread_rank()];
  int* o = out + 9 * block.thread_rank();
  o[0] = tile.shfl_down(v, 2);
  o[1] = cg::reduce(tile, v, cg::plus<int>());
  o[2] = cg::reduce(warp, v, cg::greater<int>());
  o[3] = (int)tile.ballot(v & 1);
  o[4] = (int)(tile.thread_rank() + 100 * tile.meta_group_rank() + 1000 * warp.meta_group_rank() + 10000 * tile.size());
  o[5] = tile.any(v == 5) + 2 * tile.all(v >= 0);
  o[6] = tile.shfl_xor(v, 1) - tile.shfl(v, 3);
  o[7] = (int)tile.match_any(v & 3);
  o[8] = (int)cg::this_grid().thread_rank();
}

// Each tile writes shared memory for its next thread; with `skip` one thread does not come to the tile's sync.
extern "C" __global__ void tile_sync(int* out, int skip) {
  __shared__ int box[64];
  const auto tile = cg::tiled_partition<16>(cg::this_thread_block());
  box[threadIdx.x] = 3 * threadIdx.x;
  if (threadIdx.x != skip) tile.sync();
  out[threadIdx.x] = box[threadIdx.x ^ 1];
}

template <class T, int m, int n, int k>
__device__ void multiply(const T* a, const T* b, float* d) {
  wmma::fragment<wmma::matrix_a, m, n, k, T, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, m, n, k, T, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, m, n, k, float> fd;
  wmma::load_matrix_sync(fa, a, k);
  wmma::load_matrix_sync(fb, b, k);
  wmma::fill_fragment(fd, 1.0f);
  wmma::mma_sync(fd, fa, fb, fd);
  for (int i = 0; i < fd.num_elements; ++i) fd.x[i] *= 2;
  wmma::store_matrix_sync(d, fd, n, wmma::mem_row_major);
}
extern "C" __global__ void wmma_half(const __half* a, const __half* b, float* d) { multiply<__half, 32, 8, 16>(a, b, d); }
extern "C" __global__ void wmma_bfloat(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d) {
  multiply<__nv_bfloat16, 16, 16, 16>(a, b, d);
}
extern "C" __global__ void wmma_bytes(const signed char* a, const signed char* b, int* d) {
  wmma::fragment<wmma::matrix_a, 8, 32, 16, signed char, wmma::col_major> fa;
  wmma::fragment<wmma::matrix_b, 8, 32, 16, signed char, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 8, 32, 16, int> fd;
  wmma::load_matrix_sync(fd, d, 8, wmma::mem_col_major);
  wmma::load_matrix_sync(fa, a, 16);
  wmma::load_matrix_sync(fb, b, 32);
  wmma::mma_sync(fd, fa, fb, fd);
  wmma::store_matrix_sync(d, fd, 8, wmma::mem_col_major);
}
extern "C" __global__ void wmma_tf32(const float* a, const float* b, float* d) {
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> fd;
  wmma::load_matrix_sync(fa, a, 8);
  wmma::load_matrix_sync(fb, b, 16);
  for (int i = 0; i < fa.num_elements; ++i) fa.x[i] = wmma::__float_to_tf32(fa.x[i]);
  for (int i = 0; i < fb.num_elements; ++i) fb.x[i] = wmma::__float_to_tf32(fb.x[i]);
  wmma::fill_fragment(fd, 0.0f);
  wmma::mma_sync(fd, fa, fb, fd);
  wmma::store_matrix_sync(d, fd, 16, wmma::mem_row_major);
}

// With `wait` 1 the last copy may still be in flight.
extern "C" __global__ void pipeline(const float4* x, float4* y, int wait) {
  __shared__ float4 stage[2][32];
  for (int i = 0; i < 2; ++i) {
    __pipeline_memcpy_async(&stage[i][threadIdx.x], &x[32 * i + threadIdx.x], 16, 4 * i);
    __pipeline_commit();
  }
  __pipeline_wait_prior(wait);
  for (int i = 0; i < 2; ++i) y[32 * i + threadIdx.x] = stage[i][threadIdx.x];
}
