// What a warp of the fused kernels knows about its rows: which they are, their scores' options, their
// state from launch to launch. Row i of m-tile m in a lane is first_row + 16 m + 8 i + lane / 4; its
// columns in fragment n are first_column + 8 n + 2 (lane % 4) and the next.
#pragma once

#include "attention_call.cuh"
#include "attention_mma.cuh"

// `row_max`: as scores are, see attention_call.cuh; `row_sum` is this lane's part of a row's.
template <int M>
struct Statistics {
  float row_max[M][2], row_sum[M][2];
};

__device__ __forceinline__ int row_of_lane(int first_row, int m, int i) {
  return first_row + m * 16 + i * 8 + threadIdx.x % 32 / 4;
}

// Options and left-out keys.
template <bool general, int M, int N>
__device__ __forceinline__ void adjust_scores(const AttentionCall& call, const TilePlace& place,
                                              float (&scores)[M][N][4], int first_row, int first_key, bool masked,
                                              const float* mask, const float* slopes, KeyRange block_keys) {
  if (!general && !masked) return;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TileRow row = row_of_tile(call, place, row_of_lane(first_row, m, i));
      KeyRange range = visible_keys(call, row.token);
      range.low = max(range.low, block_keys.low);
      range.high = row.exists ? min(range.high, block_keys.high) : 0;
      const float* mask_row = nullptr;
      float slope = 0.0f;
      if (general && row.exists) {
        if (mask != nullptr) mask_row = mask + row.head * call.mask_head + row.token * call.mask_token;
        if (slopes != nullptr) slope = slopes[row.head];
      }
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int key = first_key + n * 8 + threadIdx.x % 4 * 2 + j;
          float& score = scores[m][n][2 * i + j];
          if (key < range.low || key >= range.high)
            score = -infinity();
          else if (general)
            score = general_score<false>(call, score, mask_row, key, slope, first_position(call) + row.token);
        }
    }
}

// `carries_sum`: this warp's lanes begin with the sums so far, one lane of each row; else with 0.
template <int M>
__device__ __forceinline__ void start_statistics(const AttentionCall& call, const TilePlace& place,
                                                 Statistics<M>& rows, int first_row, bool carries_sum,
                                                 const float* state_rows) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TileRow row = row_of_tile(call, place, row_of_lane(first_row, m, i));
      const bool held = call.resume && row.exists;
      const long long at = state_row(call, place, row);
      rows.row_max[m][i] = held ? state_rows[2 * at] : -infinity();
      rows.row_sum[m][i] = held && carries_sum && threadIdx.x % 4 == 0 ? state_rows[2 * at + 1] : 0.0f;
    }
}

template <int M, int N>
__device__ __forceinline__ void start_sums(const AttentionCall& call, const TilePlace& place, float (&sums)[M][N][4],
                                           int first_row, int first_column, const float* state_sums) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TileRow row = row_of_tile(call, place, row_of_lane(first_row, m, i));
      const bool held = call.resume && row.exists;
      const long long at = state_row(call, place, row) * HEAD_V + first_column + threadIdx.x % 4 * 2;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) sums[m][n][2 * i + j] = held ? state_sums[at + n * 8 + j] : 0.0f;
    }
}

// Measures scores from their row's maximum where its reference is far from 0, and sets that to 0.
template <int M, int N>
__device__ __forceinline__ void measure_from_far(float (&scores)[M][N][4], float (&references)[M][2],
                                                 const float (&row_maxima)[M][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!is_far(references[m][i])) continue;
      references[m][i] = 0.0f;
#pragma unroll
      for (int n = 0; n < N; ++n) scores[m][n][2 * i] -= row_maxima[m][i], scores[m][n][2 * i + 1] -= row_maxima[m][i];
    }
}

// Scores to weights, fragments A: two neighbouring score fragments of a row tile are one. What sums so far
// must be multiplied by goes to `rescale`; true if that is not 1 for some row of this lane.
template <class Type, int M, int N>
__device__ __forceinline__ bool weigh_scores(unsigned (&weights)[N / 2][M][4], float (&scores)[M][N][4],
                                             Statistics<M>& rows, float (&rescale)[M][2], float unit) {
  bool grown = false, far = false;
  float references[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float row_max = -infinity();
#pragma unroll
      for (int n = 0; n < N; ++n) row_max = fmaxf(row_max, fmaxf(scores[m][n][2 * i], scores[m][n][2 * i + 1]));
      const float old = rows.row_max[m][i];
      row_max = fmaxf(old, quad_max(row_max));
      references[m][i] = reference_of(base_of(row_max), unit);
      rescale[m][i] = ptx::exp2_approx(log2_of_rescale(old, base_of(row_max), unit));
      grown |= row_max > old;
      far |= is_far(references[m][i]);
      rows.row_max[m][i] = row_max;
    }
  if (__any_sync(0xffffffffu, far)) measure_from_far(scores, references, rows.row_max);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float low = ptx::exp2_approx(fmaf(scores[m][n][2 * i], unit, -references[m][i]));
        const float high = ptx::exp2_approx(fmaf(scores[m][n][2 * i + 1], unit, -references[m][i]));
        const unsigned pair = Arithmetic<Type>::pack(low, high);
        weights[n / 2][m][n % 2 * 2 + i] = pair;
        sum += sum_of_pair<Type>(low, high, pair);
      }
      rows.row_sum[m][i] = rows.row_sum[m][i] * rescale[m][i] + sum;
    }
  return grown;
}

template <int M, int N>
__device__ __forceinline__ void rescale_sums(float (&sums)[M][N][4], const float (&rescale)[M][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] *= rescale[m][i / 2];
}

// Writes results, or the state where more keys follow. `rows.row_sum`: the whole sums; `scale`: of its maxima.
template <class Type, int M, int N>
__device__ __forceinline__ void end_rows(const AttentionCall& call, const TilePlace& place,
                                         const float (&sums)[M][N][4], const Statistics<M>& rows, int first_row,
                                         int first_column, float scale, void* out, float* lse,
                                         const float* sinks, float* state_sums, float* state_rows) {
  const int column = first_column + threadIdx.x % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TileRow row = row_of_tile(call, place, row_of_lane(first_row, m, i));
      const float row_max = rows.row_max[m][i], sum = rows.row_sum[m][i];
      if (!row.exists) continue;
      if (!call.finish) {
        const long long at = state_row(call, place, row);
        if (column == 0) {
          state_rows[2 * at] = row_max;
          state_rows[2 * at + 1] = sum;
        }
#pragma unroll
        for (int n = 0; n < N; ++n)
          *reinterpret_cast<float2*>(state_sums + at * HEAD_V + n * 8 + column) =
              make_float2(sums[m][n][2 * i], sums[m][n][2 * i + 1]);
        continue;
      }
      const RowEnd end = finish_row(row_max * scale, sum, sinks, row.head);
      if (lse != nullptr && column == 0) lse[row.head * call.lse_head + row.token] = end.lse;
      const long long at = row.head * call.out_head + row.token * call.out_token;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          store_out<Type>(out, call.out_is_float32, at + n * 8 + column + j, sums[m][n][2 * i + j] * end.factor);
    }
}
