// Tiles of attention for products of warpgroups: panels of 64 columns, a panel a line of 128 bytes for each
// row, swizzled as wgmma.cuh says.
#pragma once

#include "attention_rows.cuh"
#include "bulk.cuh"
#include "wgmma.cuh"

constexpr int kWarpgroup = 128;                 // threads
constexpr int kPanel = 64;                      // columns
constexpr int kLine = 128, kEightLines = 1024;  // bytes

// A number as an argument of a lambda that needs it at compile time.
template <int VALUE>
struct Constant {
  static constexpr int value = VALUE;
};

template <class Type>
struct Products;
template <>
struct Products<Bfloat16> {
  template <int TRANSPOSED, int N, class A>
  static __device__ __forceinline__ void multiply(float (&d)[N][4], const A& a, ptx::MatrixDescriptor b,
                                                  bool accumulates) {
    ptx::wgmma_bf16<TRANSPOSED>(d, a, b, accumulates);
  }
};
template <>
struct Products<Float16> {
  template <int TRANSPOSED, int N, class A>
  static __device__ __forceinline__ void multiply(float (&d)[N][4], const A& a, ptx::MatrixDescriptor b,
                                                  bool accumulates) {
    ptx::wgmma_f16<TRANSPOSED>(d, a, b, accumulates);
  }
};

// Where chunk `chunk` of row `row` starts in a tile of `rows` rows.
__device__ __forceinline__ int panel_offset(int row, int chunk, int rows) {
  return (chunk / 8 * rows + row) * kPanel + ((chunk ^ row) & 7) * kChunk;
}

// Starts copying rows of Q; the threads of one warpgroup do. `column_of(panel)`: where a panel starts.
template <int ROWS, int PANELS, class ColumnOf>
__device__ __forceinline__ void load_rows(Element* tile, const AttentionCall& call, const TilePlace& place,
                                          const Element* q, ColumnOf column_of) {
  const int column = threadIdx.x % 8;
#pragma unroll 1
  for (int r = threadIdx.x % kWarpgroup / 8; r < ROWS; r += kWarpgroup / 8) {
    const TileRow row = row_of_tile(call, place, r);
    const Element* const source = row.exists ? q + row.head * call.q_head + row.token * call.q_token : q;
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel)
      ptx::cp_async_16_zfill(tile + panel_offset(r, panel * 8 + column, ROWS),
                             source + column_of(panel) + column * kChunk, row.exists ? 16 : 0);
  }
}
