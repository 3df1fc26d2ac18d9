// Fused attention over latent rows (absorbed MLA): one K/V head whose V is HEAD_V columns of K, for heads
// so wide that a warp cannot keep whole rows of the weighted sum.
//
// A block owns TILE_ROWS query rows (heads and tokens packed, see attention_call.cuh) and walks the keys
// TILE_KEYS at a time. For scores, a warp owns 16 rows by half of the tile's keys; two warps share rows
// and exchange their maxima. Weights go through shared memory to the products with V, where a warp owns
// all rows by HEAD_V / WARPS columns. K is read once for both products, and with two stages the next
// tile arrives meanwhile; one stage serves devices whose shared memory does not hold two.
//
// State, resuming and splits are those of attention_fused.cuh.
#pragma once

#ifndef HEAD_K
#define HEAD_K 576  // both multiples of 64
#endif
#ifndef HEAD_V
#define HEAD_V 512
#endif
#ifndef TILE_ROWS
#define TILE_ROWS 64
#endif
#ifndef TILE_KEYS
#define TILE_KEYS 64
#endif
#ifndef WARPS
#define WARPS 8  // two for each 16 rows
#endif
// Steps of 16 columns of K that the product of scores unrolls: a multiple of 4, see `moved`.
#ifndef DEPTH_UNROLL
#define DEPTH_UNROLL 4
#endif

#include "attention_rows.cuh"

constexpr int K_CHUNKS = HEAD_K / kChunk, WEIGHT_CHUNKS = TILE_KEYS / kChunk;
constexpr int ROW_TILES = TILE_ROWS / 16, WARP_KEYS = TILE_KEYS / 2, WARP_COLUMNS = HEAD_V / WARPS;
constexpr int kStageBytes = TILE_KEYS * HEAD_K * sizeof(Element);
constexpr int KEY_COLUMNS = WARP_KEYS / 8, OUT_COLUMNS = WARP_COLUMNS / 8;  // in units of a fragment
static_assert(WARPS == 2 * ROW_TILES && WARP_KEYS % 16 == 0 && WARP_COLUMNS % 16 == 0, "whole fragments");

typedef float Scores[1][KEY_COLUMNS][4];
typedef float Sums[ROW_TILES][OUT_COLUMNS][4];

// What warps tell each other about rows.
struct Exchange {
  float row_max[2][TILE_ROWS];  // of each half of the keys; at the end the rows' own
  float row_sum[2][TILE_ROWS];
  float rescale[TILE_ROWS];
};

template <class Type>
__device__ __forceinline__ void multiply_keys(Scores& scores, ptx::SharedPlace q, ptx::SharedPlace k) {
#pragma unroll
  for (int n = 0; n < KEY_COLUMNS; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[0][n][i] = 0.0f;
#pragma unroll DEPTH_UNROLL
  for (int depth = 0; depth < HEAD_K / 16; ++depth) {
    unsigned a[4];
    load_a<K_CHUNKS>(a, q, 0, depth);
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; n += 2) {
      unsigned b[4];
      load_b_of_rows<K_CHUNKS>(b, k, n * 8, depth);
      Arithmetic<Type>::multiply(scores[0][n], a, b[0], b[1]);
      Arithmetic<Type>::multiply(scores[0][n + 1], a, b[2], b[3]);
    }
  }
}

// Leaves this warp's maxima where the other warp of its rows finds them.
__device__ __forceinline__ void tell_maxima(Exchange& exchange, const Scores& scores, int first_row, int half) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float row_max = -infinity();
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; ++n) row_max = fmaxf(row_max, fmaxf(scores[0][n][2 * i], scores[0][n][2 * i + 1]));
    row_max = quad_max(row_max);
    if (threadIdx.x % 4 == 0) exchange.row_max[half][row_of_lane(first_row, 0, i)] = row_max;
  }
}

// Scores to weights, in shared memory; true if a maximum has grown, so that sums are rescaled.
template <class Type>
__device__ __forceinline__ bool weigh(Exchange& exchange, Element* weight_tile, Scores& scores,
                                      Statistics<1>& rows, float unit, int first_row, int half) {
  bool grown = false, far = false;
  float references[1][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row_of_lane(first_row, 0, i);
    const float old = rows.row_max[0][i];
    const float row_max = fmaxf(old, fmaxf(exchange.row_max[0][row], exchange.row_max[1][row]));
    references[0][i] = reference_of(base_of(row_max), unit);
    const float rescale = ptx::exp2_approx(log2_of_rescale(old, base_of(row_max), unit));
    rows.row_sum[0][i] *= rescale;
    rows.row_max[0][i] = row_max;
    grown |= row_max > old;
    far |= is_far(references[0][i]);
    if (half == 0 && threadIdx.x % 4 == 0) exchange.rescale[row] = rescale;
  }
  if (__any_sync(0xffffffffu, far)) measure_from_far(scores, references, rows.row_max);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row_of_lane(first_row, 0, i);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; ++n) {
      const float low = ptx::exp2_approx(fmaf(scores[0][n][2 * i], unit, -references[0][i]));
      const float high = ptx::exp2_approx(fmaf(scores[0][n][2 * i + 1], unit, -references[0][i]));
      const unsigned pair = Arithmetic<Type>::pack(low, high);
      sum += sum_of_pair<Type>(low, high, pair);
      const int at = tile_offset(row, half * KEY_COLUMNS + n, WEIGHT_CHUNKS) + threadIdx.x % 4 * 2;
      *reinterpret_cast<unsigned*>(weight_tile + at) = pair;
    }
    rows.row_sum[0][i] += sum;
  }
  return grown;
}

__device__ __forceinline__ void rescale_sums(Sums& sums, const Exchange& exchange) {
#pragma unroll
  for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float rescale = exchange.rescale[row_of_lane(0, m, i)];
#pragma unroll
      for (int n = 0; n < OUT_COLUMNS; ++n) sums[m][n][2 * i] *= rescale, sums[m][n][2 * i + 1] *= rescale;
    }
}

// `careful`: NaN and inf in V count as 0. A row that may see such a key has a NaN or infinite score, V
// being part of K, and so is not finite anyway.
template <class Type, bool careful>
__device__ __forceinline__ void add_values(Sums& sums, ptx::SharedPlace weights,
                                           const ptx::SharedPlace (&v)[OUT_COLUMNS / 2], int stage_bytes) {
#pragma unroll
  for (int keys = 0; keys < TILE_KEYS / 16; ++keys) {
    unsigned a[ROW_TILES][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) load_a<WEIGHT_CHUNKS>(a[m], weights, m * 16, keys);
#pragma unroll
    for (int n = 0; n < OUT_COLUMNS; n += 2) {
      unsigned b[4];
      load_b<K_CHUNKS>(b, v[n / 2] + stage_bytes, keys * 16, 0);
      if (careful)
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = part_of_pair<Type>(b[i], kFinite);
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m) {
        Arithmetic<Type>::multiply(sums[m][n], a[m], b[0], b[1]);
        Arithmetic<Type>::multiply(sums[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// `general`: mask, softcap, ALiBi, or a scale that is not positive. `stages`: tiles of K in shared memory.
template <class Type, bool general>
__global__ void __launch_bounds__(kThreads, 1)
    attention_latent(const Element* __restrict__ q, const Element* __restrict__ k, void* __restrict__ out,
                     float* __restrict__ lse, const float* __restrict__ mask, const float* __restrict__ slopes,
                     const float* __restrict__ sinks, float* __restrict__ state_sums,
                     float* __restrict__ state_rows, const int* n_kv, const int stages,
                     const __grid_constant__ AttentionCall given) {
  ptx::await_earlier_kernels();
  const AttentionCall call = counting(given, n_kv);
  extern __shared__ __align__(128) Element shared[];
  Element* const q_tile = shared;
  Element* const weight_tile = q_tile + TILE_ROWS * HEAD_K;
  Element* const k_tiles = weight_tile + TILE_ROWS * TILE_KEYS;
  Exchange& exchange = *reinterpret_cast<Exchange*>(k_tiles + stages * TILE_KEYS * HEAD_K);

  const TilePlace place = place_of_block(call, blockIdx.x);
  const KeyRange keys = keys_of_tile(call, place, TILE_KEYS), seen_by_all = keys_of_all(call, place);
  k += place.head_kv * call.k_head;
  const int warp = threadIdx.x / 32, half = warp % 2, first_row = warp / 2 * 16;
  const int first_column = warp * WARP_COLUMNS;

  // Where this warp's lanes read fragments; V's columns may start at any chunk.
  const ptx::SharedPlace q_place = place_of_a<K_CHUNKS>(q_tile, first_row);
  const ptx::SharedPlace k_place = place_of_b_rows<K_CHUNKS>(k_tiles, half * WARP_KEYS);
  const ptx::SharedPlace weight_place = place_of_a<WEIGHT_CHUNKS>(weight_tile, 0);
  ptx::SharedPlace v_places[OUT_COLUMNS / 2];
#pragma unroll
  for (int n = 0; n < OUT_COLUMNS; n += 2)
    v_places[n / 2] = place_of_b<K_CHUNKS>(k_tiles, (call.v_column + first_column) / kChunk + n);

  const Element* const source = copy_source(k, call.k_key);
  const ptx::SharedPlace copies = copy_place<K_CHUNKS>(k_tiles);
  auto load_keys = [&](int stage, int first_key) {
    if (call.aligned && first_key + TILE_KEYS <= call.n_keys)
      load_whole_tile<TILE_KEYS, K_CHUNKS>(copies + stage * kStageBytes, source + first_key * call.k_key, call.k_key);
    else
      load_tile<TILE_KEYS, K_CHUNKS>(k_tiles + stage * (TILE_KEYS * HEAD_K), call.aligned, [&](int r) {
        const bool exists = first_key + r < call.n_keys;
        return SourceRow{exists ? k + (first_key + r) * call.k_key : k, exists};
      });
  };

  Sums sums;
  Statistics<ROW_TILES> whole_rows;
  Statistics<1> rows;
  start_sums(call, place, sums, 0, first_column, state_sums);
  start_statistics(call, place, rows, first_row, half == 0, state_rows);
  const float unit = general ? kLog2E : call.scale * kLog2E;

  // Tiles start at multiples of TILE_KEYS: splits and launches do, so that they never share one.
  const int first = keys.low / TILE_KEYS * TILE_KEYS;
  if (keys.low < keys.high) {
    load_tile<TILE_ROWS, K_CHUNKS>(q_tile, call.aligned, [&](int r) {
      const TileRow row = row_of_tile(call, place, r);
      return SourceRow{row.exists ? q + row.head * call.q_head + row.token * call.q_token : q, row.exists};
    });
    load_keys(0, first);
    ptx::cp_async_commit();
  }
  int stage = 0;
  for (int key = first; key < keys.high; key += TILE_KEYS) {
    const bool more = key + TILE_KEYS < keys.high;
    if (stages == 2 && more) load_keys(stage ^ 1, key + TILE_KEYS);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();  // all but the group just made, which may be empty
    const bool masked = key < seen_by_all.low || key + TILE_KEYS > min(seen_by_all.high, keys.high);
    bool careful = false;
    if (masked || (general && mask != nullptr))
      careful = any_not_finite<Type, TILE_KEYS, K_CHUNKS>(k_tiles + stage * (TILE_KEYS * HEAD_K),
                                                          call.v_column / kChunk, HEAD_V / kChunk);
    careful = __syncthreads_or(careful);  // K is there

    Scores scores;
    multiply_keys<Type>(scores, q_place, k_place + stage * kStageBytes);
    adjust_scores<general>(call, place, scores, first_row, key + half * WARP_KEYS, masked, mask, slopes, keys);
    tell_maxima(exchange, scores, first_row, half);
    ptx::named_barrier_sync(1 + warp / 2, 64);  // the two warps of these rows
    const bool grown = weigh<Type>(exchange, weight_tile, scores, rows, unit, first_row, half);
    if (__syncthreads_or(grown)) rescale_sums(sums, exchange);  // weights are there
    if (careful)
      add_values<Type, true>(sums, weight_place, v_places, stage * kStageBytes);
    else
      add_values<Type, false>(sums, weight_place, v_places, stage * kStageBytes);
    __syncthreads();  // nobody reads K or weights any more
    if (stages == 1 && more) load_keys(0, key + TILE_KEYS);
    if (stages == 1) ptx::cp_async_commit();
    if (stages == 2) stage ^= 1;
  }

  // The rows' statistics, from the two warps that have them to all.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(rows.row_sum[0][i]);
    if (threadIdx.x % 4 != 0) continue;
    const int row = row_of_lane(first_row, 0, i);
    exchange.row_sum[half][row] = sum;
    if (half == 0) exchange.row_max[0][row] = rows.row_max[0][i];
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_of_lane(0, m, i);
      whole_rows.row_max[m][i] = exchange.row_max[0][row];
      whole_rows.row_sum[m][i] = exchange.row_sum[0][row] + exchange.row_sum[1][row];
    }
  end_rows<Type>(call, place, sums, whole_rows, 0, first_column, general ? 1.0f : call.scale, out, lse, sinks,
                 state_sums, state_rows);
}
