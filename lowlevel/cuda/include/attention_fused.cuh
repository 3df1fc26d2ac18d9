// Fused attention on 16-bit tensor cores: scores, online softmax and weighted sum without leaving the
// chip (FlashAttention-2's scheme, arXiv:2307.08691).
//
// A block owns TILE_ROWS query rows of one K/V head (heads of a group and tokens packed, see
// attention_call.cuh) and walks the keys that any of them sees, TILE_KEYS at a time. A warp owns 16 *
// M_TILES rows for good, so that no statistics cross warps. K and V have one buffer each: V arrives
// while scores are computed, the next K while weights are. Keys that a row may not see get a score of
// -inf, thus a weight of exactly 0; where V holds NaN or inf beside such keys, the slower
// `add_values_carefully` keeps 0 * NaN out of the sums.
//
// The state (sums, maximum, denominator of each row, float32) may come from an earlier launch over
// other keys (resume) and go on to a later one (not finish) or to attention_merge.
#pragma once

#ifndef HEAD_K
#define HEAD_K 192  // both multiples of 64
#endif
#ifndef HEAD_V
#define HEAD_V 128
#endif
#ifndef TILE_ROWS
#define TILE_ROWS 128
#endif
#ifndef TILE_KEYS
#define TILE_KEYS 64
#endif
#ifndef WARPS
#define WARPS 4
#endif
// Steps of 16 columns of K that the product of scores unrolls, if not `general`. On an H100, all of them
// gave 14 % over 2 (192/128); elsewhere, or with options, they would spill registers.
#ifndef DEPTH_UNROLL
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#define DEPTH_UNROLL (HEAD_K / 16)
#else
#define DEPTH_UNROLL 2
#endif
#endif
#ifndef BLOCKS_PER_SM
#define BLOCKS_PER_SM 2
#endif

#include "attention_rows.cuh"

constexpr int M_TILES = TILE_ROWS / (16 * WARPS);
constexpr int K_CHUNKS = HEAD_K / kChunk, V_CHUNKS = HEAD_V / kChunk;
constexpr int KEY_COLUMNS = TILE_KEYS / 8, OUT_COLUMNS = HEAD_V / 8;  // in units of a fragment

typedef float Scores[M_TILES][KEY_COLUMNS][4];
typedef unsigned Weights[M_TILES][TILE_KEYS / 16][4];  // fragments A
typedef float Sums[M_TILES][OUT_COLUMNS][4];

template <class Type, int unroll>
__device__ __forceinline__ void multiply_keys(Scores& scores, const Element* q_tile, const Element* k_tile) {
#pragma unroll
  for (int m = 0; m < M_TILES; ++m)
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
  const int first_row = threadIdx.x / 32 * M_TILES * 16;
#pragma unroll unroll
  for (int depth = 0; depth < HEAD_K / 16; ++depth) {
    unsigned a[M_TILES][4];
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) load_a<K_CHUNKS>(a[m], q_tile, first_row + m * 16, depth);
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; n += 2) {
      unsigned b[4];
      load_b_of_rows<K_CHUNKS>(b, k_tile, n * 8, depth);
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
        Arithmetic<Type>::multiply(scores[m][n], a[m], b[0], b[1]);
        Arithmetic<Type>::multiply(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <class Type>
__device__ __forceinline__ void add_values(Sums& sums, const Weights& weights, const Element* v_tile) {
#pragma unroll
  for (int keys = 0; keys < TILE_KEYS / 16; ++keys)
#pragma unroll
    for (int n = 0; n < OUT_COLUMNS; n += 2) {
      unsigned b[4];
      load_b<V_CHUNKS>(b, v_tile, keys * 16, n);
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
        Arithmetic<Type>::multiply(sums[m][n], weights[m][keys], b[0], b[1]);
        Arithmetic<Type>::multiply(sums[m][n + 1], weights[m][keys], b[2], b[3]);
      }
    }
}

// `general`: mask, softcap, ALiBi, or a scale that is not positive.
template <class Type, bool general>
__global__ void __launch_bounds__(kThreads, BLOCKS_PER_SM)
attention_fused(const Element* __restrict__ q, const Element* __restrict__ k, const Element* __restrict__ v,
                void* __restrict__ out, float* __restrict__ lse, const float* __restrict__ mask,
                const float* __restrict__ slopes, const float* __restrict__ sinks,
                float* __restrict__ state_sums, float* __restrict__ state_rows,
                const __grid_constant__ AttentionCall call) {
  extern __shared__ __align__(128) Element shared[];
  Element* const q_tile = shared;
  Element* const k_tile = q_tile + TILE_ROWS * HEAD_K;
  Element* const v_tile = k_tile + TILE_KEYS * HEAD_K;

  const TilePlace place = place_of_block(call, blockIdx.x);
  const KeyRange keys = keys_of_tile(call, place), seen_by_all = keys_of_all(call, place);
  k += place.head_kv * call.k_head;
  v += place.head_kv * call.v_head;

  auto load_queries = [&]() {
    load_tile<TILE_ROWS, K_CHUNKS>(q_tile, call.aligned, [&](int r) {
      const TileRow row = row_of_tile(call, place, r);
      return SourceRow{row.exists ? q + row.head * call.q_head + row.token * call.q_token : q, row.exists};
    });
  };
  auto load_keys = [&](int first_key) {
    load_tile<TILE_KEYS, K_CHUNKS>(k_tile, call.aligned, [&](int r) {
      const bool exists = first_key + r < call.n_keys;
      return SourceRow{exists ? k + (first_key + r) * call.k_key : k, exists};
    });
  };
  auto load_values = [&](int first_key) {
    load_tile<TILE_KEYS, V_CHUNKS>(v_tile, call.aligned, [&](int r) {
      const bool exists = first_key + r < call.n_keys;
      return SourceRow{exists ? v + (first_key + r) * call.v_key : v, exists};
    });
  };

  Sums sums;
  Statistics<M_TILES> rows;
  const int first_row = threadIdx.x / 32 * M_TILES * 16;
  start_sums(call, place, sums, first_row, 0, state_sums);
  start_statistics(call, place, rows, first_row, true, state_rows);
  const float scale_log2 = general ? 1.0f : call.scale * kLog2E;

  // Tiles start at multiples of TILE_KEYS: splits and launches do, so that they never share one.
  const int first = keys.low / TILE_KEYS * TILE_KEYS;
  if (keys.low < keys.high) {
    load_queries();
    load_keys(first);
    ptx::cp_async_commit();
  }
  for (int key = first; key < keys.high; key += TILE_KEYS) {
    ptx::cp_async_wait_all();
    __syncthreads();  // K is there, and nobody reads the last V any more
    load_values(key);
    ptx::cp_async_commit();

    Scores scores;
    multiply_keys<Type, general ? 2 : DEPTH_UNROLL>(scores, q_tile, k_tile);

    const bool masked = key < seen_by_all.low || key + TILE_KEYS > min(seen_by_all.high, keys.high);
    const bool leaves_out = masked || (general && mask != nullptr);
    ptx::cp_async_wait_all();
    // V is there, and nobody reads K any more.
    bool careful = false;
    if (leaves_out)
      careful = __syncthreads_or(any_not_finite<Type, TILE_KEYS, V_CHUNKS>(v_tile, 0, V_CHUNKS));
    else
      __syncthreads();
    if (key + TILE_KEYS < keys.high) {
      load_keys(key + TILE_KEYS);
      ptx::cp_async_commit();
    }

    adjust_scores<general>(call, place, scores, first_row, key, masked, mask, slopes, keys);
    Weights weights;
    float shrink[M_TILES][2];
    const bool grown = weigh_scores<Type>(weights, scores, rows, shrink, scale_log2);
    if (__any_sync(0xffffffffu, grown)) shrink_sums(sums, shrink);
    if (careful)
      add_values_carefully<Type>(sums, weights, [&](unsigned (&b)[4], int key, int chunk) {
        load_b<V_CHUNKS>(b, v_tile, key, chunk);
      });
    else
      add_values<Type>(sums, weights, v_tile);
  }
#pragma unroll
  for (int m = 0; m < M_TILES; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) rows.sum[m][i] = row_sum(rows.sum[m][i]);
  end_rows<Type>(call, place, sums, rows, first_row, 0, out, lse, sinks, state_sums, state_rows);
}
