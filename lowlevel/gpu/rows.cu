// Rows by index. Gathered and put: a thread a piece. Added up by token in the order of rows: a thread has a piece of a token and
// goes through the token's rows, which scatter_order has put side by side.
#include "rows.cuh"

struct GatherCall {
  long long table_row, out_row, id_step;  // strides in items
  long long n_tokens;
  int table_rows, columns;
  int aligned;
  int unused;
};

template <class Table, class Out>
__global__ void __launch_bounds__(kThreads)
    gather_rows(const typename Table::Bits* __restrict__ table, const int* __restrict__ ids,
                typename Out::Bits* __restrict__ out, const GatherCall call) {
  ptx::await_earlier_kernels();
  const Piece piece(call.columns);
  if (piece.row >= call.n_tokens) return;
  const int left = call.columns - piece.column, id = ids[piece.row * call.id_step];
  float v[kPiece];
  if (id >= 0 && id < call.table_rows) {
    load_piece<Table>(table + id * call.table_row + piece.column, left, call.aligned, v);
  } else {  // none of the table's
#pragma unroll
    for (int i = 0; i < kPiece; ++i) v[i] = __uint_as_float(0x7fc00000u);
  }
  store_piece<Out>(out + piece.row * call.out_row + piece.column, left, call.aligned, v);
}

struct PutCall {
  long long rows_plane, rows_row, out_plane, out_row, id_step;  // strides in items
  long long n_rows;                                             // of all planes
  int plane_rows, columns;
  int out_rows;  // of a plane
  int aligned;
};

template <class Row, class Out>
__global__ void __launch_bounds__(kThreads)
    put_rows(const typename Row::Bits* __restrict__ rows, const int* __restrict__ ids,
             typename Out::Bits* __restrict__ out, const PutCall call) {
  ptx::await_earlier_kernels();
  const Piece piece(call.columns);
  if (piece.row >= call.n_rows) return;
  const long long plane = piece.row / call.plane_rows, row = piece.row - plane * call.plane_rows;
  const int left = call.columns - piece.column, id = ids[row * call.id_step];
  if (id < 0 || id >= call.out_rows) return;  // none of out's
  float v[kPiece];
  load_piece<Row>(rows + plane * call.rows_plane + row * call.rows_row + piece.column, left, call.aligned, v);
  store_piece<Out>(out + plane * call.out_plane + id * call.out_row + piece.column, left, call.aligned, v);
}

// order: rows sorted by token, stably; starts[t]: how many rows are of tokens below t (n_tokens + 1 of them). A thread has a row or a
// start, and counts what comes before it: no two threads meet, whatever the order of their work.
__global__ void __launch_bounds__(kThreads)
    scatter_order(const int* __restrict__ tokens, int* __restrict__ order, int* __restrict__ starts,
                  const long long token_step, const int n_rows, const int n_tokens) {
  ptx::await_earlier_kernels();
  __shared__ int tile[kThreads];
  const long long index = (long long)blockIdx.x * kThreads + threadIdx.x;
  const bool is_row = index < n_rows;
  const int row = is_row ? (int)index : 0;
  const int token = is_row ? tokens[row * token_step] : (int)(index - n_rows);
  int before = 0;
  for (int start = 0; start < n_rows; start += kThreads) {
    const int of_tile = min(kThreads, n_rows - start);
    __syncthreads();
    if ((int)threadIdx.x < of_tile) tile[threadIdx.x] = tokens[(start + (int)threadIdx.x) * token_step];
    __syncthreads();
    for (int i = 0; i < of_tile; ++i) {
      const int other = tile[i];
      before += other < token || (is_row && other == token && start + i < row);
    }
  }
  if (is_row) order[before] = row;
  else if (index - n_rows <= n_tokens) starts[index - n_rows] = before;
}

struct ScatterCall {
  long long rows_row, out_row;  // strides in items
  int n_tokens, columns;
  int of_token;  // rows of each token where there is no order
  int aligned;
};

template <class Row, class Out>
__global__ void __launch_bounds__(kThreads)
    scatter_add(const typename Row::Bits* __restrict__ rows, const float* __restrict__ weights,
                const int* __restrict__ order, const int* __restrict__ starts, typename Out::Bits* __restrict__ out,
                const ScatterCall call) {
  ptx::await_earlier_kernels();
  const Piece piece(call.columns);
  if (piece.row >= call.n_tokens) return;
  const int token = (int)piece.row, left = call.columns - piece.column;
  const long long first = order == nullptr ? (long long)token * call.of_token : starts[token];
  const long long stop = order == nullptr ? first + call.of_token : starts[token + 1];
  if (first == stop) return;
  float total[kPiece], v[kPiece];
  out += token * call.out_row + piece.column;
  load_piece<Out>(out, left, call.aligned, total);
  for (long long i = first; i < stop; ++i) {
    const long long row = order == nullptr ? i : order[i];
    const float weight = weights == nullptr ? 1.0f : weights[row];
    load_piece<Row>(rows + row * call.rows_row + piece.column, left, call.aligned, v);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) total[j] = __fmaf_rn(weight, v[j], total[j]);
  }
  store_piece<Out>(out, left, call.aligned, total);
}
