// Root mean square normalisation of rows, which row_threads threads of a block share: 32, or all. In place, too.
#include "rows.cuh"

// Pieces of a row that a thread keeps in registers between the two times it looks at them.
constexpr int kHeld = 2;

// y: rows that are added to those of x first, each sum rounded to x's type; null: none.
template <class X, class Out>
__global__ void __launch_bounds__(kThreads)
    rms_norm(typename X::Bits* x, const void* y, const float* __restrict__ weight, typename Out::Bits* out,
             const float eps, const int row_threads, const RowsCall call) {
  ptx::await_earlier_kernels();
  const int first = threadIdx.x % row_threads * kPiece, step = row_threads * kPiece;
  const long long row = (long long)blockIdx.x * (kThreads / row_threads) + threadIdx.x / row_threads;
  const bool there = row < call.n_rows;
  const int columns = there ? call.columns : 0;
  x += there ? row_offset(row, call.plane_rows, call.x_plane, call.x_row) : 0;
  const long long y_at = there ? row_offset(row, call.plane_rows, call.y_plane, call.y_row) : 0;

  float total = 0.0f;
  auto load = [&](int column, float (&v)[kPiece]) {
    const int left = columns - column;
    load_piece<X>(x + column, left, call.aligned, v);
    if (y == nullptr) return;
    float addends[kPiece];
    load_any(y, y_at + column, call.y_type, left, call.aligned, addends);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) v[i] = X::widen(X::narrow(__fadd_rn(v[i], addends[i])));
    store_piece<X>(x + column, left, call.aligned, v);
  };
  auto count = [&](const float (&v)[kPiece]) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) total = __fmaf_rn(v[i], v[i], total);
  };
  float held[kHeld][kPiece];
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (first + i * step < columns) load(first + i * step, held[i]);
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (first + i * step < columns) count(held[i]);
  for (int column = first + kHeld * step; column < columns; column += step) {
    float v[kPiece];
    load(column, v);
    count(v);
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
  const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(total, (float)columns) + eps));
  auto store = [&](int column, float (&v)[kPiece]) {
    const int left = columns - column;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) v[i] = __fmul_rn(v[i], factor);
    if (weight != nullptr) {
      float w[kPiece];
      load_piece<Float32>(weight + column, left, call.aligned, w);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) v[i] = __fmul_rn(v[i], w[i]);
    }
    store_piece<Out>(out + column, left, call.aligned, v);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (first + i * step < columns) store(first + i * step, held[i]);
  for (int column = first + kHeld * step; column < columns; column += step) {
    float v[kPiece];
    load_piece<X>(x + column, columns - column, call.aligned, v);
    store(column, v);
  }
}
