// Arrays of one float type as another, rounded to the nearest even: (planes, rows, columns) in any strides but
// that of the columns, which lie side by side. Launched by cast.py.
#include "float_types.cuh"
#include "ptx.cuh"

constexpr int kThreads = 256;
constexpr int kItems = 4;  // of a thread, kThreads apart: a warp's accesses lie side by side

struct CastCall {
  long long source_plane, source_row, target_plane, target_row;  // strides in items
  long long n_rows, columns, n_items;                            // of a plane, of a row, of all
};

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    cast(const typename From::Bits* __restrict__ source, typename To::Bits* __restrict__ target, const CastCall call) {
  ptx::await_earlier_kernels();
  const long long first = (long long)blockIdx.x * (kThreads * kItems) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const long long item = first + i * kThreads;
    if (item >= call.n_items) return;
    const long long row = item / call.columns, column = item % call.columns;
    const long long plane = row / call.n_rows, row_of_plane = row % call.n_rows;
    const float value = From::widen(source[plane * call.source_plane + row_of_plane * call.source_row + column]);
    target[plane * call.target_plane + row_of_plane * call.target_row + column] = To::narrow(value);
  }
}
