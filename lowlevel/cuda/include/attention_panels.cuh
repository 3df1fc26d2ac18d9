// Tiles of attention for products of warpgroups: panels of 64 columns, a panel a line of 128 bytes for each
// row, swizzled as wgmma.cuh says.
#pragma once

#include "attention_rows.cuh"
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
