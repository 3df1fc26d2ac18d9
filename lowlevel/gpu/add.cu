// Sums and multiples of rows: a thread a piece. out may be x.
#include "rows.cuh"

// ids: which row of y each row meets, `id_step` items apart; null: its own. A row that y's y_rows do not have is NaN.
template <class X, class Y>
__global__ void __launch_bounds__(kThreads)
    add(const typename X::Bits* x, const typename Y::Bits* __restrict__ y, const int* __restrict__ ids,
        typename X::Bits* out, const long long id_step, const int y_rows, const RowsCall call) {
  ptx::await_earlier_kernels();
  const Piece piece(call.columns);
  if (piece.row >= call.n_rows) return;
  const int left = call.columns - piece.column;
  float a[kPiece], b[kPiece];
  x += row_offset(piece.row, call.plane_rows, call.x_plane, call.x_row) + piece.column;
  out += row_offset(piece.row, call.plane_rows, call.out_plane, call.out_row) + piece.column;
  load_piece<X>(x, left, call.aligned, a);
  if (ids == nullptr) {
    y += row_offset(piece.row, call.plane_rows, call.y_plane, call.y_row) + piece.column;
    load_piece<Y>(y, left, call.aligned, b);
  } else {
    const int id = ids[piece.row * id_step];
    if (id >= 0 && id < y_rows) {
      load_piece<Y>(y + id * call.y_row + piece.column, left, call.aligned, b);
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) b[i] = __uint_as_float(0x7fc00000u);
    }
  }
#pragma unroll
  for (int i = 0; i < kPiece; ++i) a[i] = __fadd_rn(a[i], b[i]);
  store_piece<X>(out, left, call.aligned, a);
}

template <class X>
__global__ void __launch_bounds__(kThreads) scale(typename X::Bits* x, const float factor, const RowsCall call) {
  ptx::await_earlier_kernels();
  const Piece piece(call.columns);
  if (piece.row >= call.n_rows) return;
  const int left = call.columns - piece.column;
  float v[kPiece];
  x += row_offset(piece.row, call.plane_rows, call.x_plane, call.x_row) + piece.column;
  load_piece<X>(x, left, call.aligned, v);
#pragma unroll
  for (int i = 0; i < kPiece; ++i) v[i] = __fmul_rn(v[i], factor);
  store_piece<X>(x, left, call.aligned, v);
}
