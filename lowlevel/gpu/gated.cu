// Gated activations of rows: a thread a piece. out may be gate or up.
#include "rows.cuh"

enum GatedKind {
  kSwiglu = 0,
  kGeglu = 1,
  kClampedSwiglu = 2
};

__device__ __forceinline__ float activated(int kind, float gate, float up, float alpha, float limit) {
  if (kind == kSwiglu) return gate * sigmoid(gate) * up;
  if (kind == kGeglu) {  // x sigmoid(2 u), u the argument of tanh: no difference of numbers near 1
    const float cube = __fmaf_rn(__fmul_rn(gate, gate), 0.044715f, 1.0f);
    return gate * sigmoid(gate * 1.5957691216057308f * cube) * up;
  }
  gate = gate > limit ? limit : gate;  // a NaN stays
  up = up > limit ? limit : (up < -limit ? -limit : up);
  return gate * sigmoid(gate * alpha) * __fadd_rn(up, 1.0f);
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    gated(const typename In::Bits* gate, const typename In::Bits* up, typename Out::Bits* out, const int kind,
          const float alpha, const float limit, const RowsCall call) {
  ptx::await_earlier_kernels();
  const Piece piece(call.columns);
  if (piece.row >= call.n_rows) return;
  const int left = call.columns - piece.column;
  float g[kPiece], u[kPiece];
  gate += row_offset(piece.row, call.plane_rows, call.x_plane, call.x_row) + piece.column;
  up += row_offset(piece.row, call.plane_rows, call.y_plane, call.y_row) + piece.column;
  out += row_offset(piece.row, call.plane_rows, call.out_plane, call.out_row) + piece.column;
  load_piece<In>(gate, left, call.aligned, g);
  load_piece<In>(up, left, call.aligned, u);
#pragma unroll
  for (int i = 0; i < kPiece; ++i) g[i] = activated(kind, g[i], u[i], alpha, limit);
  store_piece<Out>(out, left, call.aligned, g);
}
