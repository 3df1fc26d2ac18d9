// Fused attention on Hopper's warpgroup products: what attention_fused.cuh computes, where rows of Q, K
// and V are aligned (FlashAttention-3's scheme, arXiv:2407.08608).
//
// A block owns TILE_ROWS query rows of one K/V head. A thread of its first warpgroup has tiles of K and V
// copied, in turn, into STAGES places each; other warps of it look for NaN and inf in V beside keys that some row
// may not see. Each of the other warpgroups owns 64 rows; while the tensor cores work on the
// scores of one tile and the weighted sum of the tile before, it turns scores into weights. Tiles with
// keys that some row may not see are worked on one after another instead, as in attention_fused.cuh.
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

#define KEYS_FROM_HOST
#include "attention_panels.cuh"

constexpr int kConsumers = TILE_ROWS / 64;
static_assert(WARPS == 4 * (kConsumers + 1), "a warpgroup that copies, and one for each 64 rows");
constexpr int K_PANELS = HEAD_K / kPanel, V_PANELS = HEAD_V / kPanel;
constexpr int KEY_COLUMNS = TILE_KEYS / 8, OUT_COLUMNS = HEAD_V / 8;  // in units of a fragment
constexpr int K_TILE = TILE_KEYS * HEAD_K, V_TILE = TILE_KEYS * HEAD_V;  // elements

typedef float Scores[1][KEY_COLUMNS][4];
typedef unsigned Weights[TILE_KEYS / 16][1][4];  // fragments A
typedef float Sums[1][OUT_COLUMNS][4];

// Named barriers, of each warpgroup: its turn to start products. They alternate, so that one makes weights while
// the other keeps the tensor cores busy (7 % on an H100, 192/128).
constexpr int kTurn = 1;
static_assert(kConsumers == 2, "they take turns");

// Barriers of copies, and what is known of V, by place.
constexpr int kLookers = 3;  // warps
struct Copies {
  ptx::MemoryBarrier rows;  // Q is there
  ptx::MemoryBarrier keys_ready[STAGES], values_ready[STAGES], keys_free[STAGES], values_free[STAGES];
  ptx::MemoryBarrier looked[STAGES];      // at a tile with keys that are left out
  unsigned careful[STAGES][kLookers + 1];  // whether a warp met NaN or inf there
};

// Whether a tile holds NaN or inf, as far as the lookers' share goes.
template <class Type, int ROWS, int PANELS>
__device__ __forceinline__ bool any_not_finite_in_panels(const Element* tile) {
  bool found = false;
#pragma unroll 1
  for (int i = threadIdx.x - 32; i < ROWS * PANELS * 8; i += kLookers * 32) {
    const uint4 values = reinterpret_cast<const uint4*>(tile)[i];
    const unsigned words[4] = {values.x, values.y, values.z, values.w};
    for (int j = 0; j < 4; ++j) found |= not_finite<Type>(words[j]) || not_finite<Type>(words[j] >> 16);
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

// `general`: mask, softcap, ALiBi, or a scale that is not positive.
template <class Type, bool general>
__global__ void __launch_bounds__(kThreads, 1)
    attention_wgmma(const __grid_constant__ ptx::TensorMap k, const __grid_constant__ ptx::TensorMap v,
                    const Element* __restrict__ q, void* __restrict__ out, float* __restrict__ lse,
                    const float* __restrict__ mask, const float* __restrict__ slopes, const float* __restrict__ sinks,
                    float* __restrict__ state_sums, float* __restrict__ state_rows,
                    const __grid_constant__ AttentionCall call) {
  ptx::await_earlier_kernels();
  extern __shared__ __align__(1024) Element shared[];
  Element* const q_tile = shared;
  Element* const k_tiles = q_tile + TILE_ROWS * HEAD_K;
  Element* const v_tiles = k_tiles + STAGES * K_TILE;
  Copies& copies = *reinterpret_cast<Copies*>(v_tiles + STAGES * V_TILE);

  const TilePlace place = place_of_block(call, blockIdx.x);
  const KeyRange keys = keys_of_tile(call, place, TILE_KEYS), seen_by_all = keys_of_all(call, place);
  const int n_tiles = keys.low < keys.high ? (keys.high - keys.low + TILE_KEYS - 1) / TILE_KEYS : 0;
  // Tiles first_clean <= t < end_of_clean hold nothing but keys that all rows see.
  const int first_clean = max(0, seen_by_all.low - keys.low + TILE_KEYS - 1) / TILE_KEYS;
  const int end_of_clean = max(0, min(seen_by_all.high, keys.high) - keys.low) / TILE_KEYS;
  auto leaves_out = [&](int tile) {
    return tile < first_clean || tile >= end_of_clean || (general && mask != nullptr);
  };
  // The same in all lanes, as far as the compiler can see too.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);

  if (threadIdx.x == 0) {
    ptx::prefetch(k);
    ptx::prefetch(v);
    ptx::make_memory_barrier(&copies.rows, kWarpgroup);
    for (int stage = 0; stage < STAGES; ++stage) {
      ptx::make_memory_barrier(&copies.keys_ready[stage], 1);
      ptx::make_memory_barrier(&copies.values_ready[stage], 1);
      ptx::make_memory_barrier(&copies.keys_free[stage], kConsumers * 4);
      ptx::make_memory_barrier(&copies.values_free[stage], kConsumers * 4 + kLookers);
      ptx::make_memory_barrier(&copies.looked[stage], kLookers);
    }
    ptx::memory_barriers_made();
  }
  __syncthreads();

  // The phase of a tile's place in which it is there.
  auto phase = [&](int tile) { return tile / STAGES & 1; };
  // By each warp that has used it.
  auto give_back = [&](ptx::MemoryBarrier(&free)[STAGES], int tile) {
    if (tile + STAGES >= n_tiles) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::arrive(&free[tile % STAGES]);
  };

  if (warpgroup == 0) {
    ptx::fewer_registers<40>();
    if (n_tiles == 0) return;
    auto load_keys = [&](int tile) {
      ptx::MemoryBarrier* const ready = &copies.keys_ready[tile % STAGES];
      ptx::arrive_expecting(ready, K_TILE * 2);
#pragma unroll
      for (int panel = 0; panel < K_PANELS; ++panel)
        ptx::copy_box(k_tiles + tile % STAGES * K_TILE + panel * TILE_KEYS * kPanel, k, panel * kPanel,
                      keys.low + tile * TILE_KEYS, call.k_head != 0 ? place.head_kv : 0, ready);
    };
    auto load_values = [&](int tile) {
      ptx::MemoryBarrier* const ready = &copies.values_ready[tile % STAGES];
      ptx::arrive_expecting(ready, V_TILE * 2);
#pragma unroll
      for (int panel = 0; panel < V_PANELS; ++panel)
        ptx::copy_box(v_tiles + tile % STAGES * V_TILE + panel * TILE_KEYS * kPanel, v, panel * kPanel,
                      keys.low + tile * TILE_KEYS, call.v_head != 0 ? place.head_kv : 0, ready);
    };
    if (threadIdx.x == 0) load_keys(0);
    load_rows<TILE_ROWS, K_PANELS>(q_tile, call, place, q, [](int panel) { return panel * kPanel; });
    ptx::cp_async_commit();
    if (threadIdx.x == 0) load_values(0);
    ptx::cp_async_wait<0>();
    ptx::fence_proxy_async();
    ptx::arrive(&copies.rows);
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int tile = 1; tile < n_tiles; ++tile) {
        if (tile >= STAGES) ptx::await(&copies.keys_free[tile % STAGES], phase(tile - STAGES));
        load_keys(tile);
        if (tile >= STAGES) ptx::await(&copies.values_free[tile % STAGES], phase(tile - STAGES));
        load_values(tile);
      }
    }
    if (threadIdx.x >= 32) {
#pragma unroll 1
      for (int tile = 0; tile < n_tiles; ++tile) {
        const int stage = tile % STAGES;
        ptx::await(&copies.values_ready[stage], phase(tile));
        if (leaves_out(tile)) {
          const bool found = any_not_finite_in_panels<Type, TILE_KEYS, V_PANELS>(v_tiles + stage * V_TILE);
          const bool any = __any_sync(0xffffffffu, found);
          if (threadIdx.x % 32 == 0) {
            copies.careful[stage][threadIdx.x / 32] = any;
            ptx::arrive(&copies.looked[stage]);
          }
        }
        give_back(copies.values_free, tile);
      }
    }
    return;
  }

  ptx::more_registers<232>();
  const int consumer = warpgroup - 1;
  const int first_row = consumer * 64 + threadIdx.x % kWarpgroup / 32 * 16;
  const ptx::MatrixDescriptor q_rows = ptx::matrix_descriptor(q_tile + consumer * 64 * kPanel, kLine, kEightLines);
  const ptx::MatrixDescriptor k_first = ptx::matrix_descriptor(k_tiles, kLine, kEightLines);
  const ptx::MatrixDescriptor v_first = ptx::matrix_descriptor(v_tiles, TILE_KEYS * kLine, kEightLines);
  auto keys_of = [&](int tile) { return ptx::moved(k_first, tile % STAGES * K_TILE * 2); };
  auto values_of = [&](int tile) { return ptx::moved(v_first, tile % STAGES * V_TILE * 2); };

  Sums sums;
  Scores scores;
  Weights weights;
  Statistics<1> rows;
  float rescale[1][2];
  start_sums(call, place, sums, first_row, 0, state_sums);
  start_statistics(call, place, rows, first_row, true, state_rows);
  const float unit = general ? kLog2E : call.scale * kLog2E;

  // Scores of a tile that is there, not overlapped with anything.
  auto score = [&](int tile) {
    ptx::await(&copies.keys_ready[tile % STAGES], phase(tile));
    ptx::wgmma_fence();
    start_scores<Type>(scores, q_rows, keys_of(tile));
    ptx::wgmma_wait<0>();
    ptx::wgmma_received(scores[0]);
    give_back(copies.keys_free, tile);
  };
  auto add_values = [&](int tile) {
    ptx::wgmma_fence();
    start_sums_of_values<Type>(sums, weights, values_of(tile));
    ptx::wgmma_wait<0>();
    ptx::wgmma_received(sums[0]);
  };

  unsigned looked = 0;  // a bit a place: the parity of the phase of `looked` that is next

  // Whatever the tile is, one thing after another.
  auto any_tile = [&](int tile) {
    const int stage = tile % STAGES;
    score(tile);
    const int first_key = keys.low + tile * TILE_KEYS;
    const bool masked = tile < first_clean || tile >= end_of_clean;
    if (general)
      adjust_by_options(call, place, scores, first_row, first_key, masked, mask, slopes, keys);
    else
      adjust_scores<false>(call, place, scores, first_row, first_key, masked, nullptr, nullptr, keys);
    const bool grown = weigh_scores<Type>(weights, scores, rows, rescale, unit);
    if (__any_sync(0xffffffffu, grown)) rescale_sums(sums, rescale);
    ptx::await(&copies.values_ready[stage], phase(tile));
    bool careful = false;
    if (leaves_out(tile)) {
      ptx::await(&copies.looked[stage], looked >> stage & 1);
      looked ^= 1u << stage;
      const unsigned* const met = copies.careful[stage];
      careful = met[1] | met[2] | met[3];
    }
    if (careful) {
      const Element* const v_tile = v_tiles + stage * V_TILE;
      add_values_carefully<Type>(sums, weights, [&](unsigned (&b)[4], int key, int chunk) {
        const int lane = threadIdx.x % 32;
        ptx::ldmatrix_x4_trans(b, v_tile + panel_offset(key + lane % 16, chunk + lane / 16, TILE_KEYS));
      });
    } else {
      add_values(tile);
    }
    give_back(copies.values_free, tile);
  };

  auto await_turn = [&]() { ptx::named_barrier_sync(kTurn + consumer, 2 * kWarpgroup); };
  auto pass_turn = [&]() { ptx::named_barrier_arrive(kTurn + (consumer ^ 1), 2 * kWarpgroup); };
  auto clean_tiles = [&](int first, int end) {
    score(first);
    if (consumer == 1) pass_turn();
    bool grown = weigh_scores<Type>(weights, scores, rows, rescale, unit);
    if (__any_sync(0xffffffffu, grown)) rescale_sums(sums, rescale);
#pragma unroll 1
    for (int tile = first + 1; tile < end; ++tile) {
      ptx::await(&copies.keys_ready[tile % STAGES], phase(tile));
      await_turn();
      ptx::wgmma_fence();
      start_scores<Type>(scores, q_rows, keys_of(tile));
      ptx::await(&copies.values_ready[(tile - 1) % STAGES], phase(tile - 1));
      start_sums_of_values<Type>(sums, weights, values_of(tile - 1));
      pass_turn();
      ptx::wgmma_wait<1>();
      ptx::wgmma_received(scores[0]);
      give_back(copies.keys_free, tile);
      Weights next;
      grown = weigh_scores<Type>(next, scores, rows, rescale, unit);
      ptx::wgmma_wait<0>();
      ptx::wgmma_received(sums[0]);
      give_back(copies.values_free, tile - 1);
      if (__any_sync(0xffffffffu, grown)) rescale_sums(sums, rescale);
#pragma unroll
      for (int i = 0; i < TILE_KEYS / 16; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) weights[i][0][j] = ptx::copied_now(next[i][0][j]);
    }
    if (consumer == 0) await_turn();  // the last one passed
    ptx::await(&copies.values_ready[(end - 1) % STAGES], phase(end - 1));
    add_values(end - 1);
    give_back(copies.values_free, end - 1);
  };

  if (n_tiles > 0) ptx::await(&copies.rows, 0);
#pragma unroll 1
  for (int tile = 0; tile < n_tiles;) {
    if (!general && tile == first_clean && tile < end_of_clean) {  // a general one has no registers for both
      clean_tiles(tile, end_of_clean);
      tile = end_of_clean;
    } else {
      any_tile(tile);
      ++tile;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) rows.row_sum[0][i] = quad_sum(rows.row_sum[0][i]);
  end_rows<Type>(call, place, sums, rows, first_row, 0, general ? 1.0f : call.scale, out, lse, sinks, state_sums,
                 state_rows);
}
