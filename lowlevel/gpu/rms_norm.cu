// Root mean square normalisation of rows, which row_threads threads of a block share: 32, or all. In place, too.
#include "rows.cuh"

template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    rms_norm(const typename In::Bits* x, const float* __restrict__ weight, typename Out::Bits* out, const float eps,
             const int row_threads, const RowsCall call) {
  ptx::await_earlier_kernels();
  const int thread = threadIdx.x % row_threads;
  const long long row = (long long)blockIdx.x * (kThreads / row_threads) + threadIdx.x / row_threads;
  const bool there = row < call.n_rows;
  x += there ? row_offset(row, call.plane_rows, call.x_plane, call.x_row) : 0;

  float total = 0.0f, v[kPiece];
  for (int column = thread * kPiece; there && column < call.columns; column += row_threads * kPiece) {
    load_piece<In>(x + column, call.columns - column, call.aligned, v);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) total = __fmaf_rn(v[i], v[i], total);
  }
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  if (row_threads > 32) {
    __shared__ float of_warps[kThreads / 32];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = total;
    __syncthreads();
    total = 0.0f;
    for (int warp = 0; warp < kThreads / 32; ++warp) total += of_warps[warp];
  }
  if (!there) return;

  out += row_offset(row, call.plane_rows, call.out_plane, call.out_row);
  const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(total, (float)call.columns) + eps));
  for (int column = thread * kPiece; column < call.columns; column += row_threads * kPiece) {
    const int left = call.columns - column;
    load_piece<In>(x + column, left, call.aligned, v);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) v[i] = __fmul_rn(v[i], factor);
    if (weight != nullptr) {
      float w[kPiece];
      load_piece<Float32>(weight + column, left, call.aligned, w);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) v[i] = __fmul_rn(v[i], w[i]);
    }
    store_piece<Out>(out + column, left, call.aligned, v);
  }
}
