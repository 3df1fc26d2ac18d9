// Fused attention on Hopper's warpgroup products: what attention_fused.cuh computes, where rows of Q, K
// and V are aligned and scores have no options beyond a positive scale (FlashAttention-3's scheme,
// arXiv:2407.08608).
//
// A block owns TILE_ROWS query rows of one K/V head. Its first warpgroup only copies: tiles of K and V, in
// turn, into STAGES places each. Each of the others owns 64 rows; while the tensor cores work on the
// scores of one tile and the weighted sum of the tile before, it turns scores into weights. Tiles with
// keys that some row may not see are worked on one after another instead, as in attention_fused.cuh.
//
// Tiles in shared memory are panels of 64 columns, a panel a line of 128 bytes for each row, swizzled as
// wgmma.cuh says.
#pragma once

#ifndef HEAD_K
#define HEAD_K 192  // both multiples of 64, HEAD_V at most 128
#endif
#ifndef HEAD_V
#define HEAD_V 128
#endif
#ifndef TILE_ROWS
#define TILE_ROWS 128  // 64 for each warpgroup but the first
#endif
#ifndef TILE_KEYS
#define TILE_KEYS 128
#endif
#ifndef STAGES
#define STAGES 2
#endif
#ifndef WARPS
#define WARPS 12
#endif

#include "attention_rows.cuh"
#include "wgmma.cuh"

constexpr int kWarpgroup = 128, kConsumers = TILE_ROWS / 64;
static_assert(WARPS == 4 * (kConsumers + 1), "a warpgroup that copies, and one for each 64 rows");
constexpr int kPanel = 64;                    // columns
constexpr int kLine = 128, kEightLines = 1024;  // bytes
constexpr int K_PANELS = HEAD_K / kPanel, V_PANELS = HEAD_V / kPanel;
constexpr int KEY_COLUMNS = TILE_KEYS / 8, OUT_COLUMNS = HEAD_V / 8;  // in units of a fragment
constexpr int K_TILE = TILE_KEYS * HEAD_K, V_TILE = TILE_KEYS * HEAD_V;  // elements

typedef float Scores[1][KEY_COLUMNS][4];
typedef unsigned Weights[TILE_KEYS / 16][1][4];  // fragments A
typedef float Sums[1][OUT_COLUMNS][4];

// Named barriers, of each stage. What is ready is told to each warpgroup on its own, so that they need not
// keep step.
constexpr int kKeysReady = 1, kValuesReady = kKeysReady + kConsumers * STAGES;
constexpr int kKeysFree = kValuesReady + kConsumers * STAGES, kValuesFree = kKeysFree + STAGES;
// Of each warpgroup: its turn to start products. They alternate, so that one makes weights while the other
// keeps the tensor cores busy (7 % on an H100, 192/128).
constexpr int kTurn = kValuesFree + STAGES;
static_assert(kConsumers == 2 && kTurn + kConsumers <= 16, "named barriers");

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

// Starts copying a tile; the threads of one warpgroup do. `source_row(row)` is a SourceRow.
template <int ROWS, int PANELS, class RowSource>
__device__ __forceinline__ void load_panels(Element* tile, RowSource source_row) {
  constexpr int kRows = kWarpgroup / 8;
  const int column = threadIdx.x % 8, first = threadIdx.x % kWarpgroup / 8;
#pragma unroll
  for (int pass = 0; pass < ROWS / kRows; ++pass) {
    const int row = first + pass * kRows;
    const SourceRow source = source_row(row);
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) {
      const int chunk = panel * 8 + column;
      ptx::cp_async_16_zfill(tile + panel_offset(row, chunk, ROWS), source.address + chunk * kChunk,
                             source.exists ? 16 : 0);
    }
  }
}

// Whether the chunks that this thread copied hold NaN or inf.
template <class Type, int ROWS, int PANELS>
__device__ __forceinline__ bool any_not_finite_in_panels(const Element* tile) {
  bool found = false;
#pragma unroll 1
  for (int row = threadIdx.x % kWarpgroup / 8; row < ROWS; row += kWarpgroup / 8)
    for (int panel = 0; panel < PANELS; ++panel) {
      const Element* chunk = tile + panel_offset(row, panel * 8 + threadIdx.x % 8, ROWS);
      const uint4 values = *reinterpret_cast<const uint4*>(chunk);
      const unsigned words[4] = {values.x, values.y, values.z, values.w};
      for (int i = 0; i < 4; ++i) found |= not_finite<Type>(words[i]) || not_finite<Type>(words[i] >> 16);
    }
  return found;
}

// Starts scores = Q K^T of 64 rows; `q` and `k` are K-major.
template <class Type>
__device__ __forceinline__ void start_scores(Scores& scores, ptx::MatrixDescriptor q, ptx::MatrixDescriptor k) {
#pragma unroll
  for (int depth = 0; depth < HEAD_K / 16; ++depth) {
    const int panel = depth / 4, inside = depth % 4 * 32;
    Products<Type>::template multiply<0>(scores[0], ptx::moved(q, panel * TILE_ROWS * kLine + inside),
                                         ptx::moved(k, panel * TILE_KEYS * kLine + inside), depth != 0);
  }
  ptx::wgmma_commit();
}

// Starts sums += weights V; `v` is N-major.
template <class Type>
__device__ __forceinline__ void start_sums_of_values(Sums& sums, const Weights& weights, ptx::MatrixDescriptor v) {
#pragma unroll
  for (int keys = 0; keys < TILE_KEYS / 16; ++keys)
    Products<Type>::template multiply<1>(sums[0], weights[keys][0], ptx::moved(v, keys * 16 * kLine), true);
  ptx::wgmma_commit();
}

template <class Type>
__global__ void __launch_bounds__(kThreads, 1)
attention_wgmma(const Element* __restrict__ q, const Element* __restrict__ k, const Element* __restrict__ v,
                void* __restrict__ out, float* __restrict__ lse, const float* __restrict__ sinks,
                float* __restrict__ state_sums, float* __restrict__ state_rows,
                const __grid_constant__ AttentionCall call) {
  extern __shared__ __align__(1024) Element shared[];
  Element* const q_tile = shared;
  Element* const k_tiles = q_tile + TILE_ROWS * HEAD_K;
  Element* const v_tiles = k_tiles + STAGES * K_TILE;
  // Of each stage, whether a warp that copied V met NaN or inf; told where keys are left out.
  unsigned (*const careful)[4] = reinterpret_cast<unsigned (*)[4]>(v_tiles + STAGES * V_TILE);

  const TilePlace place = place_of_block(call, blockIdx.x);
  const KeyRange keys = keys_of_tile(call, place), seen_by_all = keys_of_all(call, place);
  const int n_tiles = keys.low < keys.high ? (keys.high - keys.low + TILE_KEYS - 1) / TILE_KEYS : 0;
  // Tiles first_clean <= t < end_of_clean hold nothing but keys that all rows see.
  const int first_clean = max(0, seen_by_all.low - keys.low + TILE_KEYS - 1) / TILE_KEYS;
  const int end_of_clean = max(0, min(seen_by_all.high, keys.high) - keys.low) / TILE_KEYS;
  // The same in all lanes, as far as the compiler can see too.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);

  if (warpgroup == 0) {
    ptx::fewer_registers<56>();
    k += place.head_kv * call.k_head;
    v += place.head_kv * call.v_head;
    auto load_keys = [&](int tile) {
      const int first_key = keys.low + tile * TILE_KEYS;
      load_panels<TILE_KEYS, K_PANELS>(k_tiles + tile % STAGES * K_TILE, [&](int r) {
        const bool exists = first_key + r < call.n_keys;
        return SourceRow{exists ? k + (first_key + r) * call.k_key : k, exists};
      });
      ptx::cp_async_commit();
    };
    auto load_values = [&](int tile) {
      const int first_key = keys.low + tile * TILE_KEYS;
      load_panels<TILE_KEYS, V_PANELS>(v_tiles + tile % STAGES * V_TILE, [&](int r) {
        const bool exists = first_key + r < call.n_keys;
        return SourceRow{exists ? v + (first_key + r) * call.v_key : v, exists};
      });
      ptx::cp_async_commit();
    };
    auto tell = [&](int barrier, int tile) {
      ptx::fence_proxy_async();
#pragma unroll
      for (int consumer = 0; consumer < kConsumers; ++consumer)
        ptx::named_barrier_arrive(barrier + consumer * STAGES + tile % STAGES, 2 * kWarpgroup);
    };
    auto tell_values = [&](int tile) {
      if (tile < first_clean || tile >= end_of_clean) {
        const int stage = tile % STAGES;
        const bool found = any_not_finite_in_panels<Type, TILE_KEYS, V_PANELS>(v_tiles + stage * V_TILE);
        const bool any = __any_sync(0xffffffffu, found);
        if (threadIdx.x % 32 == 0) careful[stage][threadIdx.x / 32] = any;
      }
      tell(kValuesReady, tile);
    };
    if (n_tiles > 0)
      load_panels<TILE_ROWS, K_PANELS>(q_tile, [&](int r) {
        const TileRow row = row_of_tile(call, place, r);
        return SourceRow{row.exists ? q + row.head * call.q_head + row.token * call.q_token : q, row.exists};
      });
#pragma unroll 1
    for (int tile = 0; tile < n_tiles; ++tile) {
      if (tile >= STAGES) ptx::named_barrier_sync(kKeysFree + tile % STAGES, kThreads);
      load_keys(tile);  // with Q, the first time
      if (tile > 0) {
        ptx::cp_async_wait<1>();
        tell_values(tile - 1);
      }
      if (tile >= STAGES) ptx::named_barrier_sync(kValuesFree + tile % STAGES, kThreads);
      load_values(tile);
      ptx::cp_async_wait<1>();
      tell(kKeysReady, tile);
    }
    ptx::cp_async_wait<0>();
    if (n_tiles > 0) tell_values(n_tiles - 1);
    return;
  }

  ptx::more_registers<224>();
  const int consumer = warpgroup - 1;
  const int first_row = consumer * 64 + threadIdx.x % kWarpgroup / 32 * 16;
  auto await = [&](int barrier, int tile) {
    ptx::named_barrier_sync(barrier + consumer * STAGES + tile % STAGES, 2 * kWarpgroup);
  };
  auto release = [&](int barrier, int tile) {
    if (tile + STAGES < n_tiles) ptx::named_barrier_arrive(barrier + tile % STAGES, kThreads);
  };
  const ptx::MatrixDescriptor q_rows = ptx::matrix_descriptor(q_tile + consumer * 64 * kPanel, kLine, kEightLines);
  const ptx::MatrixDescriptor k_first = ptx::matrix_descriptor(k_tiles, kLine, kEightLines);
  const ptx::MatrixDescriptor v_first = ptx::matrix_descriptor(v_tiles, TILE_KEYS * kLine, kEightLines);
  auto keys_of = [&](int tile) { return ptx::moved(k_first, tile % STAGES * K_TILE * 2); };
  auto values_of = [&](int tile) { return ptx::moved(v_first, tile % STAGES * V_TILE * 2); };

  Sums sums;
  Scores scores;
  Weights weights;
  Statistics<1> rows;
  float shrink[1][2];
  start_sums(call, place, sums, first_row, 0, state_sums);
  start_statistics(call, place, rows, first_row, true, state_rows);
  const float unit = call.scale * kLog2E;

  // Scores of a tile that is there, not overlapped with anything.
  auto score = [&](int tile) {
    await(kKeysReady, tile);
    ptx::wgmma_fence();
    start_scores<Type>(scores, q_rows, keys_of(tile));
    ptx::wgmma_wait<0>();
    ptx::wgmma_received(scores[0]);
    release(kKeysFree, tile);
  };
  auto add_values = [&](int tile) {
    ptx::wgmma_fence();
    start_sums_of_values<Type>(sums, weights, values_of(tile));
    ptx::wgmma_wait<0>();
    ptx::wgmma_received(sums[0]);
  };

  auto masked_tile = [&](int tile) {
    score(tile);
    adjust_scores<false>(call, place, scores, first_row, keys.low + tile * TILE_KEYS, true, nullptr, nullptr, keys);
    const bool grown = weigh_scores<Type>(weights, scores, rows, shrink, unit);
    if (__any_sync(0xffffffffu, grown)) shrink_sums(sums, shrink);
    await(kValuesReady, tile);
    const uint4 met = *reinterpret_cast<const uint4*>(careful[tile % STAGES]);
    if (met.x | met.y | met.z | met.w) {
      const Element* const v_tile = v_tiles + tile % STAGES * V_TILE;
      add_values_carefully<Type>(sums, weights, [&](unsigned(&b)[4], int key, int chunk) {
        const int lane = threadIdx.x % 32;
        ptx::ldmatrix_x4_trans(b, v_tile + panel_offset(key + lane % 16, chunk + lane / 16, TILE_KEYS));
      });
    } else {
      add_values(tile);
    }
    release(kValuesFree, tile);
  };

  auto await_turn = [&]() { ptx::named_barrier_sync(kTurn + consumer, 2 * kWarpgroup); };
  auto pass_turn = [&]() { ptx::named_barrier_arrive(kTurn + (consumer ^ 1), 2 * kWarpgroup); };
  auto clean_tiles = [&](int first, int end) {
    score(first);
    if (consumer == 1) pass_turn();
    bool grown = weigh_scores<Type>(weights, scores, rows, shrink, unit);
    if (__any_sync(0xffffffffu, grown)) shrink_sums(sums, shrink);
#pragma unroll 1
    for (int tile = first + 1; tile < end; ++tile) {
      await(kKeysReady, tile);
      await_turn();
      ptx::wgmma_fence();
      start_scores<Type>(scores, q_rows, keys_of(tile));
      await(kValuesReady, tile - 1);
      start_sums_of_values<Type>(sums, weights, values_of(tile - 1));
      pass_turn();
      ptx::wgmma_wait<1>();
      ptx::wgmma_received(scores[0]);
      release(kKeysFree, tile);
      Weights next;
      grown = weigh_scores<Type>(next, scores, rows, shrink, unit);
      ptx::wgmma_wait<0>();
      ptx::wgmma_received(sums[0]);
      release(kValuesFree, tile - 1);
      if (__any_sync(0xffffffffu, grown)) shrink_sums(sums, shrink);
#pragma unroll
      for (int i = 0; i < TILE_KEYS / 16; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) weights[i][0][j] = ptx::copied_now(next[i][0][j]);
    }
    if (consumer == 0) await_turn();  // the last one passed
    await(kValuesReady, end - 1);
    add_values(end - 1);
    release(kValuesFree, end - 1);
  };

#pragma unroll 1
  for (int tile = 0; tile < n_tiles;) {
    if (tile == first_clean && tile < end_of_clean) {
      clean_tiles(tile, end_of_clean);
      tile = end_of_clean;
    } else {
      masked_tile(tile);
      ++tile;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) rows.sum[0][i] = row_sum(rows.sum[0][i]);
  end_rows<Type>(call, place, sums, rows, first_row, 0, call.scale, out, lse, sinks, state_sums, state_rows);
}
