// Fused attention on 16-bit tensor cores: scores, online softmax and weighted sum without leaving the
// chip (FlashAttention-2's scheme, arXiv:2307.08691).
//
// A block owns TILE_ROWS query rows of one K/V head (heads of a group and tokens packed, see
// attention_call.cuh) and walks the keys that any of them sees, TILE_KEYS at a time. A warp owns 16 *
// M_TILES rows for good, so that no statistics cross warps. V arrives while scores are computed, the next
// K while weights are, or all the time where it has a second buffer. Keys that a row may not see get a score of
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
// Steps of 16 columns of K that the product of scores unrolls, if not `general`: a multiple of 4, see
// `moved`. On an H100, all of them gave 7 % over 4 (192/128); elsewhere they would spill registers.
#ifndef DEPTH_UNROLL
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#define DEPTH_UNROLL (HEAD_K / 16)
#else
#define DEPTH_UNROLL 4
#endif
#endif
// Tiles of K in shared memory. With two the next one arrives from the start of a tile on: 4 % at 64/64 on an
// H100, -4 % at 192/128.
#ifndef STAGES_K
#define STAGES_K 1
#endif
// How many times 16 keys weights are made ahead of their product with V, if not `general`. One lets tensor
// cores work meanwhile (4 % on an H100); elsewhere it would spill registers, and all are made first.
#ifndef AHEAD
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#define AHEAD 1
#else
#define AHEAD (TILE_KEYS / 16 - 1)
#endif
#endif
#ifndef BLOCKS_PER_SM
#define BLOCKS_PER_SM 2
#endif

#if TILE_ROWS >= 128
#define KEYS_FROM_HOST
#endif
#include "attention_rows.cuh"

constexpr int M_TILES = TILE_ROWS / (16 * WARPS);
constexpr int K_CHUNKS = HEAD_K / kChunk, V_CHUNKS = HEAD_V / kChunk;
constexpr int kStageBytes = TILE_KEYS * HEAD_K * sizeof(Element);
constexpr int KEY_PARTS = TILE_KEYS / 16;  // of 16 keys, as deep as a product of fragments
constexpr int KEY_COLUMNS = TILE_KEYS / 8, OUT_COLUMNS = HEAD_V / 8;  // in units of a fragment

typedef float Scores[M_TILES][KEY_COLUMNS][4];
typedef unsigned Weights[KEY_PARTS][M_TILES][4];  // fragments A
typedef float Sums[M_TILES][OUT_COLUMNS][4];

template <class Type, int unroll>
__device__ __forceinline__ void multiply_keys(Scores& scores, ptx::SharedPlace q, ptx::SharedPlace k) {
#pragma unroll
  for (int m = 0; m < M_TILES; ++m)
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
#pragma unroll unroll
  for (int depth = 0; depth < HEAD_K / 16; ++depth) {
    unsigned a[M_TILES][4];
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) load_a<K_CHUNKS>(a[m], q, m * 16, depth);
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; n += 2) {
      unsigned b[4];
      load_b_of_rows<K_CHUNKS>(b, k, n * 8, depth);
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
        Arithmetic<Type>::multiply(scores[m][n], a[m], b[0], b[1]);
        Arithmetic<Type>::multiply(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// What a row's scores are measured from, in units of log2; see attention_call.cuh.
typedef float References[M_TILES][2];

// Takes the maxima of scores in; sums so far are scaled down where one has grown.
__device__ __forceinline__ void raise_maxima(References& references, Scores& scores, Sums& sums,
                                             Statistics<M_TILES>& rows, float unit) {
  bool grown = false, far = false;
  float old[M_TILES][2];
#pragma unroll
  for (int m = 0; m < M_TILES; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float row_max = -infinity();
#pragma unroll
      for (int n = 0; n < KEY_COLUMNS; ++n)
        row_max = fmaxf(row_max, fmaxf(scores[m][n][2 * i], scores[m][n][2 * i + 1]));
      old[m][i] = rows.row_max[m][i];
      rows.row_max[m][i] = fmaxf(old[m][i], quad_max(row_max));
      grown |= rows.row_max[m][i] > old[m][i];
    }
  if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float rescale = ptx::exp2_approx(log2_of_rescale(old[m][i], base_of(rows.row_max[m][i]), unit));
        rows.row_sum[m][i] *= rescale;
#pragma unroll
        for (int n = 0; n < OUT_COLUMNS; ++n) sums[m][n][2 * i] *= rescale, sums[m][n][2 * i + 1] *= rescale;
      }
  }
#pragma unroll
  for (int m = 0; m < M_TILES; ++m)  // only now: registers are scarce above
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      references[m][i] = reference_of(base_of(rows.row_max[m][i]), unit);
      far |= is_far(references[m][i]);
    }
  if (__any_sync(0xffffffffu, far)) measure_from_far(scores, references, rows.row_max);
}

// Scores of 16 keys to weights.
template <class Type>
__device__ __forceinline__ void weigh(unsigned (&weights)[M_TILES][4], const Scores& scores, int keys,
                                      const References& references, Statistics<M_TILES>& rows, float unit) {
#pragma unroll
  for (int m = 0; m < M_TILES; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float (&pair)[4] = scores[m][keys * 2 + j];
        const float low = ptx::exp2_approx(fmaf(pair[2 * i], unit, -references[m][i]));
        const float high = ptx::exp2_approx(fmaf(pair[2 * i + 1], unit, -references[m][i]));
        // Two neighbouring score fragments of a row tile are one fragment A of weights.
        weights[m][j * 2 + i] = Arithmetic<Type>::pack(low, high);
        rows.row_sum[m][i] += sum_of_pair<Type>(low, high, weights[m][j * 2 + i]);
      }
}

template <class Type>
__device__ __forceinline__ void add_values(Sums& sums, const unsigned (&weights)[M_TILES][4], ptx::SharedPlace v,
                                           int keys) {
#pragma unroll
  for (int n = 0; n < OUT_COLUMNS; n += 2) {
    unsigned b[4];
    load_b<V_CHUNKS>(b, v, keys * 16, n);
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
      Arithmetic<Type>::multiply(sums[m][n], weights[m], b[0], b[1]);
      Arithmetic<Type>::multiply(sums[m][n + 1], weights[m], b[2], b[3]);
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
#ifdef KEYS_FROM_HOST
                    const __grid_constant__ AttentionCall call) {
  ptx::await_earlier_kernels();
#else
                    const int* n_kv, const __grid_constant__ AttentionCall given) {
  const AttentionCall call = counting(given, n_kv);
#endif
  constexpr int kAhead = general ? KEY_PARTS - 1 : AHEAD;
  extern __shared__ __align__(128) Element shared[];
  Element* const q_tile = shared;
  Element* const k_tile = q_tile + TILE_ROWS * HEAD_K;
  Element* const v_tile = k_tile + STAGES_K * TILE_KEYS * HEAD_K;

  const TilePlace place = place_of_block(call, blockIdx.x);
  const KeyRange keys = keys_of_tile(call, place, TILE_KEYS), seen_by_all = keys_of_all(call, place);
  k += place.head_kv * call.k_head;
  v += place.head_kv * call.v_head;
  const Element* const k_source = copy_source(k, call.k_key);
  const Element* const v_source = copy_source(v, call.v_key);
  const ptx::SharedPlace k_copies = copy_place<K_CHUNKS>(k_tile), v_copies = copy_place<V_CHUNKS>(v_tile);
  const int first_row = threadIdx.x / 32 * M_TILES * 16;
  // Where this warp's lanes read fragments.
  const ptx::SharedPlace q_place = place_of_a<K_CHUNKS>(q_tile, first_row);
  const ptx::SharedPlace k_place = place_of_b_rows<K_CHUNKS>(k_tile, 0), v_place = place_of_b<V_CHUNKS>(v_tile, 0);

  auto load_keys = [&](int first_key, int stage) {
    if (call.aligned && first_key + TILE_KEYS <= call.n_keys)
      load_whole_tile<TILE_KEYS, K_CHUNKS>(k_copies + stage * kStageBytes, k_source + first_key * call.k_key, call.k_key);
    else
      load_tile<TILE_KEYS, K_CHUNKS>(k_tile + stage * (TILE_KEYS * HEAD_K), call.aligned, [&](int r) {
        const bool exists = first_key + r < call.n_keys;
        return SourceRow{exists ? k + (first_key + r) * call.k_key : k, exists};
      });
  };
  auto load_values = [&](int first_key) {
    if (call.aligned && first_key + TILE_KEYS <= call.n_keys)
      load_whole_tile<TILE_KEYS, V_CHUNKS>(v_copies, v_source + first_key * call.v_key, call.v_key);
    else
      load_tile<TILE_KEYS, V_CHUNKS>(v_tile, call.aligned, [&](int r) {
        const bool exists = first_key + r < call.n_keys;
        return SourceRow{exists ? v + (first_key + r) * call.v_key : v, exists};
      });
  };

  Sums sums;
  Statistics<M_TILES> rows;
  start_sums(call, place, sums, first_row, 0, state_sums);
  start_statistics(call, place, rows, first_row, true, state_rows);
  const float unit = general ? kLog2E : call.scale * kLog2E;

  // Tiles start at multiples of TILE_KEYS: splits and launches do, so that they never share one.
  const int first = keys.low / TILE_KEYS * TILE_KEYS;
  const KeyRange whole = {seen_by_all.low, min(seen_by_all.high, keys.high)};  // tiles inside need no masking
  if (keys.low < keys.high) {
    load_tile<TILE_ROWS, K_CHUNKS>(q_tile, call.aligned, [&](int r) {
      const TileRow row = row_of_tile(call, place, r);
      return SourceRow{row.exists ? q + row.head * call.q_head + row.token * call.q_token : q, row.exists};
    });
    load_keys(first, 0);
    ptx::cp_async_commit();
  }
  int stage = 0;
  for (int key = first; key < keys.high; key += TILE_KEYS) {
    const bool more = key + TILE_KEYS < keys.high;
    ptx::cp_async_wait_all();
    __syncthreads();  // K is there, and nobody reads the last V any more
    load_values(key);
    ptx::cp_async_commit();
    if (STAGES_K == 2) {
      if (more) load_keys(key + TILE_KEYS, stage ^ 1);
      ptx::cp_async_commit();
    }

    Scores scores;
    multiply_keys<Type, general ? 4 : DEPTH_UNROLL>(scores, q_place, k_place + stage * kStageBytes);

    const bool masked = key < whole.low || key + TILE_KEYS > whole.high;
    const bool leaves_out = masked || (general && mask != nullptr);
    bool careful = false;
    auto await_values = [&]() {  // V is there, and nobody reads K any more
      ptx::cp_async_wait<STAGES_K - 1>();
      if (leaves_out)
        careful = __syncthreads_or(any_not_finite<Type, TILE_KEYS, V_CHUNKS>(v_tile, 0, V_CHUNKS));
      else
        __syncthreads();
    };
    if (STAGES_K == 1) {
      await_values();
      if (more) load_keys(key + TILE_KEYS, 0);
      ptx::cp_async_commit();
    }
    adjust_scores<general>(call, place, scores, first_row, key, masked, mask, slopes, keys);
    References references;
    raise_maxima(references, scores, sums, rows, unit);
    if (STAGES_K == 2) await_values();
    if (careful) {
      Weights weights;
      // Unless all weights are made first in any case.
      const float unit_apart = kAhead < KEY_PARTS - 1 ? ptx::apart(unit) : unit;
#pragma unroll
      for (int part = 0; part < KEY_PARTS; ++part)
        weigh<Type>(weights[part], scores, part, references, rows, unit_apart);
      add_values_carefully<Type>(sums, weights, [&](unsigned (&b)[4], int key, int chunk) {
        load_b<V_CHUNKS>(b, v_place, key, chunk);
      });
    } else {
      // Weights of the next keys are made while tensor cores work on the last ones.
      unsigned weights[kAhead + 1][M_TILES][4];
#pragma unroll
      for (int part = -kAhead; part < KEY_PARTS; ++part) {
        if (part + kAhead < KEY_PARTS)
          weigh<Type>(weights[(part + kAhead) % (kAhead + 1)], scores, part + kAhead, references, rows, unit);
        if (part >= 0) add_values<Type>(sums, weights[part % (kAhead + 1)], v_place, part);
      }
    }
    if (STAGES_K == 2) stage ^= 1;
  }
#pragma unroll
  for (int m = 0; m < M_TILES; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) rows.row_sum[m][i] = quad_sum(rows.row_sum[m][i]);
  end_rows<Type>(call, place, sums, rows, first_row, 0, general ? 1.0f : call.scale, out, lse, sinks, state_sums,
                 state_rows);
}
