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

// As adjust_scores<true>, an option at a time for all scores: those that a call does not have cost a branch each.
template <int M, int N>
__device__ __forceinline__ void adjust_by_options(const AttentionCall& call, const TilePlace& place,
                                                  float (&scores)[M][N][4], int first_row, int first_key, bool masked,
                                                  const float* mask, const float* slopes, KeyRange block_keys) {
  const int first = first_key + threadIdx.x % 4 * 2;  // of this lane's keys
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TileRow row = row_of_tile(call, place, row_of_lane(first_row, m, i));
      KeyRange range = visible_keys(call, row.token);
      range.low = max(range.low, block_keys.low);
      range.high = row.exists ? min(range.high, block_keys.high) : 0;
      auto each = [&](auto change) {
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j) change(scores[m][n][2 * i + j], n * 8 + j);
      };
      each([&](float& score, int) { score *= call.scale; });
      if (call.softcap > 0.0f) {
        const float to_exponent = 2.0f * kLog2E / call.softcap;
        each([&](float& score, int) {  // softcap * tanh(score / softcap)
          score = call.softcap * (1.0f - __fdividef(2.0f, 1.0f + ptx::exp2_approx(score * to_exponent)));
        });
      }
      if (mask != nullptr && row.exists) {
        const float* const biases =
            mask + row.head * call.mask_head + row.token * call.mask_token + first * call.mask_key;
        each([&](float& score, int key) {
          const bool inside = first + key >= range.low && first + key < range.high;
          const float bias = inside ? biases[key * call.mask_key] : -infinity();
          // -inf leaves the key out even where the score is NaN
          score = bias == -infinity() ? bias : score + bias;
        });
      }
      if (slopes != nullptr && row.exists) {
        const float slope = slopes[row.head];
        const float distance = (float)(first_position(call) + row.token - first);
        each([&](float& score, int key) { score -= slope * fabsf(distance - (float)key); });
      }
      if (masked)
        each([&](float& score, int key) {
          if (first + key < range.low || first + key >= range.high) score = -infinity();
        });
    }
}

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
