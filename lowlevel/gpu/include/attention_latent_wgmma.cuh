// Fused attention over latent rows (absorbed MLA) on Hopper's warpgroup products: what attention_latent.cuh
// computes, where rows of Q and K are aligned and V starts at a whole panel of K (FlashMLA's "seesaw").
//
// A block owns TILE_ROWS query rows and walks the keys TILE_KEYS at a time, a tile of K in either of two
// places. Two warpgroups each keep half the columns of the weighted sum for all rows, since no warpgroup
// has registers for all. Of two neighbouring tiles each makes the scores and weights of one: it leaves them,
// and the rows' maxima, in shared memory for the other, which then adds its own half of the columns. V is
// K's own memory, read in the other order. Of a pair of tiles the tensor cores make the scores of both, then
// the sums of both: while the first warpgroup makes weights they work on the scores of the second tile, while the
// second does on the sums of the first, and during those of the second the next pair arrives.
//
// A third warpgroup copies: Q, and by one thread panels of K, each with a barrier of its own, so that scores
// begin with the first. A tile is given back in two sets of panels: "early" are the first half of each
// warpgroup's columns of V, and what of K is no part of V, "late" the rest.
#pragma once

#ifndef HEAD_K
#define HEAD_K 576
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
#define WARPS 12
#endif

#include "attention_panels.cuh"

constexpr int K_PANELS = HEAD_K / kPanel, V_PANELS = HEAD_V / kPanel;
static_assert(WARPS == 12 && TILE_ROWS == 64 && TILE_KEYS == 64, "one product's rows, one panel of weights");
static_assert(K_PANELS == V_PANELS + 1 && V_PANELS == 8, "one panel of K is no part of V");
constexpr int kPanelBytes = TILE_KEYS * kLine;
constexpr int K_TILE = TILE_KEYS * HEAD_K;  // elements
constexpr int kStages = 2;
constexpr int KEY_COLUMNS = TILE_KEYS / 8;  // in units of a fragment
// Of each warpgroup's half of V's columns: slices that are multiplied, and whose memory is given back, one by one.
constexpr int kSlices = 2, SLICE_COLUMNS = HEAD_V / 2 / kSlices, SLICE_PANELS = SLICE_COLUMNS / kPanel;

typedef float Scores[1][KEY_COLUMNS][4];
typedef unsigned Weights[TILE_KEYS / 16][1][4];  // fragments A
typedef float Sums[kSlices][1][SLICE_COLUMNS / 8][4];

enum Set {
  kEarly,
  kLate,
  kSets
};
constexpr int kWorkers = 2 * kWarpgroup;  // threads
// Named barriers: of each warpgroup that makes weights; its own; of both.
constexpr int kWeights = 1, kSelf = kWeights + 2, kEnd = kSelf + 2;

// Barriers of copies.
struct Copies {
  ptx::MemoryBarrier rows;                      // Q is there
  ptx::MemoryBarrier ready[kStages][K_PANELS];  // a panel of K is
  ptx::MemoryBarrier free[kStages][kSets];      // nobody reads these panels any more
};

// What warpgroups tell each other about rows, and warps of one about its tile.
struct Exchange {
  float row_max[2][TILE_ROWS];  // after the last tile of each warpgroup
  float row_sum[2][TILE_ROWS];
  unsigned leaves_out[2][4];  // of each warp: whether it left keys out
};

// In Q's and K's tiles, panels 0 to 7 are V's columns and the last one is the rest, before or behind them.
__device__ __forceinline__ constexpr int panels_of(int set) {
  return set == kEarly ? 2 * SLICE_PANELS + 1 : 2 * SLICE_PANELS;
}
__device__ __forceinline__ constexpr int panel_of(int set, int i) {
  return i == 2 * SLICE_PANELS ? V_PANELS
                               : i / SLICE_PANELS * (kSlices * SLICE_PANELS) + set * SLICE_PANELS + i % SLICE_PANELS;
}

// Where a panel's columns of Q and K start.
__device__ __forceinline__ int column_of(int panel, int v_column) {
  return panel == V_PANELS ? (v_column == 0 ? HEAD_V : 0) : v_column + panel * kPanel;
}

// Where V's columns of a tile hold NaN or inf, they become 0: beside a key that is left out they must not
// count, and a row that may see such a key has a NaN or infinite score, V being part of K, and so is not finite
// anyway. By the threads of one warpgroup, after the tile's scores.
template <class Type>
__device__ __forceinline__ void keep_finite_values(Element* tile) {
#pragma unroll 1
  for (int i = threadIdx.x % kWarpgroup; i < TILE_KEYS * V_PANELS * 8; i += kWarpgroup) {
    uint4* const place = reinterpret_cast<uint4*>(tile) + i;
    const uint4 old = *place;
    const uint4 kept = {part_of_pair<Type>(old.x, kFinite), part_of_pair<Type>(old.y, kFinite),
                        part_of_pair<Type>(old.z, kFinite), part_of_pair<Type>(old.w, kFinite)};
    if (kept.x != old.x || kept.y != old.y || kept.z != old.z || kept.w != old.w) *place = kept;
  }
}

// Scores to weights, as weigh_scores, but for the sums of weights, which `add_weights` adds when there is time: the
// tensor cores wait for weights.
template <class Type>
__device__ __forceinline__ bool make_weights(Weights& weights, Scores& scores, Statistics<1>& rows,
                                             float (&rescale)[1][2], float unit) {
  bool grown = false, far = false;
  float references[1][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float row_max = -infinity();
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; ++n) row_max = fmaxf(row_max, fmaxf(scores[0][n][2 * i], scores[0][n][2 * i + 1]));
    const float old = rows.row_max[0][i];
    row_max = fmaxf(old, quad_max(row_max));
    references[0][i] = reference_of(base_of(row_max), unit);
    rescale[0][i] = ptx::exp2_approx(log2_of_rescale(old, base_of(row_max), unit));
    grown |= row_max > old;
    far |= is_far(references[0][i]);
    rows.row_max[0][i] = row_max;
  }
  if (__any_sync(0xffffffffu, far)) measure_from_far(scores, references, rows.row_max);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; ++n)
      weights[n / 2][0][n % 2 * 2 + i] =
          Arithmetic<Type>::pack(ptx::exp2_approx(fmaf(scores[0][n][2 * i], unit, -references[0][i])),
                                 ptx::exp2_approx(fmaf(scores[0][n][2 * i + 1], unit, -references[0][i])));
    rows.row_sum[0][i] *= rescale[0][i];
  }
  return grown;
}

// As they are multiplied, rounded.
template <class Type>
__device__ __forceinline__ void add_weights(Statistics<1>& rows, const Weights& weights) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < KEY_COLUMNS; ++n) {
      const unsigned pair = weights[n / 2][0][n % 2 * 2 + i];
      sum += Type::widen((Element)pair) + Type::widen((Element)(pair >> 16));
    }
    rows.row_sum[0][i] += sum;
  }
}

// `general`: mask, softcap, ALiBi, or a scale that is not positive.
template <class Type, bool general>
__global__ void __launch_bounds__(kThreads, 1)
    attention_latent_wgmma(const __grid_constant__ ptx::TensorMap k, const Element* __restrict__ q,
                           void* __restrict__ out, float* __restrict__ lse, const float* __restrict__ mask, const float* __restrict__ slopes,
                           const float* __restrict__ sinks, float* __restrict__ state_sums,
                           float* __restrict__ state_rows, const int* n_kv,
                           const __grid_constant__ AttentionCall given) {
  ptx::await_earlier_kernels();
  const AttentionCall call = counting(given, n_kv);
  extern __shared__ __align__(1024) Element shared[];
  Element* const q_tile = shared;
  Element* const k_tiles = q_tile + TILE_ROWS * HEAD_K;
  Element* const weight_tile = k_tiles + kStages * K_TILE;
  Exchange& exchange = *reinterpret_cast<Exchange*>(weight_tile + TILE_ROWS * TILE_KEYS);
  Copies& copies = *reinterpret_cast<Copies*>(&exchange + 1);

  const TilePlace place = place_of_block(call, blockIdx.x);
  const KeyRange keys = keys_of_tile(call, place, TILE_KEYS), seen_by_all = keys_of_all(call, place);
  const int n_tiles = keys.low < keys.high ? (keys.high - keys.low + TILE_KEYS - 1) / TILE_KEYS : 0;
  // The same in all lanes, as far as the compiler can see too.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);

  if (threadIdx.x == 0) {
    ptx::prefetch(k);
    ptx::make_memory_barrier(&copies.rows, kWarpgroup);
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      for (int panel = 0; panel < K_PANELS; ++panel) ptx::make_memory_barrier(&copies.ready[stage][panel], 1);
      for (int set = 0; set < kSets; ++set) ptx::make_memory_barrier(&copies.free[stage][set], kWorkers / 32);
    }
    ptx::memory_barriers_made();
  }
  __syncthreads();

  if (warpgroup == 0) {
    ptx::fewer_registers<40>();
    if (n_tiles == 0) return;
    auto load = [&](auto set, int tile) {
      constexpr int kSet = decltype(set)::value;
      const int stage = tile % kStages;
#pragma unroll
      for (int i = 0; i < panels_of(kSet); ++i) {
        const int panel = panel_of(kSet, i);
        ptx::arrive_expecting(&copies.ready[stage][panel], kPanelBytes);
        ptx::copy_box(k_tiles + stage * K_TILE + panel * (kPanelBytes / 2), k, column_of(panel, call.v_column),
                      keys.low + tile * TILE_KEYS, call.k_head != 0 ? place.head_kv : 0, &copies.ready[stage][panel]);
      }
    };
    auto load_first = [&](int tile) {
      load(Constant<kEarly>(), tile);
      load(Constant<kLate>(), tile);
    };
    if (threadIdx.x == 0) load_first(0);
    load_rows<TILE_ROWS, K_PANELS>(q_tile, call, place, q, [&](int panel) { return column_of(panel, call.v_column); });
    ptx::cp_async_commit();
    if (threadIdx.x == 0 && n_tiles > 1) load_first(1);
    ptx::cp_async_wait<0>();
    ptx::fence_proxy_async();
    ptx::arrive(&copies.rows);
    if (threadIdx.x != 0) return;
#pragma unroll 1
    for (int tile = kStages; tile < n_tiles; ++tile) {
      const unsigned parity = tile / kStages - 1 & 1;
      ptx::await(&copies.free[tile % kStages][kEarly], parity);
      load(Constant<kEarly>(), tile);
      ptx::await(&copies.free[tile % kStages][kLate], parity);
      load(Constant<kLate>(), tile);
    }
    return;
  }

  ptx::more_registers<232>();
  const int half = warpgroup - 1, other = half ^ 1;  // of V's columns; of each two tiles
  const int first_row = threadIdx.x % kWarpgroup / 32 * 16;
  const ptx::MatrixDescriptor q_rows = ptx::matrix_descriptor(q_tile, kLine, kEightLines);
  const ptx::MatrixDescriptor own_keys = ptx::matrix_descriptor(k_tiles + half * K_TILE, kLine, kEightLines);
  const ptx::MatrixDescriptor weight_rows = ptx::matrix_descriptor(weight_tile, kLine, kEightLines);
  // V's columns of this half, in this warpgroup's tile and in the other's.
  const ptx::MatrixDescriptor own_values = ptx::matrix_descriptor(
      k_tiles + half * K_TILE + half * kSlices * SLICE_PANELS * (kPanelBytes / 2), kPanelBytes, kEightLines);
  const ptx::MatrixDescriptor others_values = ptx::matrix_descriptor(
      k_tiles + other * K_TILE + half * kSlices * SLICE_PANELS * (kPanelBytes / 2), kPanelBytes, kEightLines);

  Sums sums;
  Scores scores;
  Weights weights;  // operands of products under way
  Statistics<1> rows;
  float rescale[1][2];
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice)
    start_sums(call, place, sums[slice], first_row, (half * kSlices + slice) * SLICE_COLUMNS, state_sums);
  start_statistics(call, place, rows, first_row, half == 0, state_rows);
  const float unit = general ? kLog2E : call.scale * kLog2E;

  // Starts a set's share of the scores of this warpgroup's tile. The early one is first.
  auto start_scores = [&](auto set, int tile) {
    constexpr int kSet = decltype(set)::value;
    const ptx::MatrixDescriptor q = ptx::found_anew(q_rows), k = ptx::found_anew(own_keys);
#pragma unroll
    for (int i = 0; i < panels_of(kSet); ++i) {
      const int panel = panel_of(kSet, i);
      ptx::await(&copies.ready[half][panel], tile / kStages & 1);
      ptx::wgmma_fence();
#pragma unroll
      for (int depth = 0; depth < kPanel / 16; ++depth) {
        const int at = panel * kPanelBytes + depth * 32;
        Products<Type>::template multiply<0>(scores[0], ptx::moved(q, at), ptx::moved(k, at),
                                             kSet != kEarly || i != 0 || depth != 0);
      }
    }
    ptx::wgmma_commit();
  };
  auto values_of = [&](ptx::MatrixDescriptor values, int slice, int step) {
    return ptx::moved(values, slice * SLICE_PANELS * kPanelBytes + step * 16 * kLine);
  };
  auto free = [&](int set, int tile) {
    if (tile + kStages >= n_tiles) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::arrive(&copies.free[tile % kStages][set]);
  };
  auto rescale_all = [&](bool grown) {
    if (!__any_sync(0xffffffffu, grown)) return;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) rescale_sums(sums[slice], rescale);
  };

  // Starts adding the other warpgroup's tile.
  auto start_others = [&]() {
    ptx::named_barrier_sync(kWeights + other, kWorkers);
    bool grown = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float old = rows.row_max[0][i], row_max = exchange.row_max[other][row_of_lane(first_row, 0, i)];
      rescale[0][i] = ptx::exp2_approx(log2_of_rescale(old, base_of(row_max), unit));
      grown |= row_max > old;
      rows.row_sum[0][i] *= rescale[0][i];
      rows.row_max[0][i] = row_max;
    }
    rescale_all(grown);
    const ptx::MatrixDescriptor values = ptx::found_anew(others_values), w = ptx::found_anew(weight_rows);
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int step = 0; step < TILE_KEYS / 16; ++step)
        Products<Type>::template multiply<1>(sums[slice][0], ptx::moved(w, step * 32), values_of(values, slice, step),
                                             true);
      ptx::wgmma_commit();
    }
  };
  // Waits for the sums of a tile, of which `LATER` groups of products were started later, and gives it back.
  auto end_sums = [&](auto later, int tile) {
    constexpr int kLater = decltype(later)::value;
    ptx::wgmma_wait<kLater + 1>();
    ptx::wgmma_received(sums[0][0]);
    free(kEarly, tile);
    ptx::wgmma_wait<kLater>();
    ptx::wgmma_received(sums[1][0]);
    free(kLate, tile);
  };

  // From the scores of this warpgroup's tile to its own half of the sums; `others`: the other's are under way.
  auto finish_own = [&](int tile, auto others) {
    constexpr bool kOthers = decltype(others)::value;
    const int first_key = keys.low + tile * TILE_KEYS;
    const bool masked = first_key < seen_by_all.low || first_key + TILE_KEYS > min(seen_by_all.high, keys.high);
    if (general)
      adjust_by_options(call, place, scores, first_row, first_key, masked, mask, slopes, keys);
    else
      adjust_scores<false>(call, place, scores, first_row, first_key, masked, nullptr, nullptr, keys);
    const bool may_leave_out = masked || (general && mask != nullptr);
    if (may_leave_out) {
      bool left_out = false;
#pragma unroll
      for (int n = 0; n < KEY_COLUMNS; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) left_out |= scores[0][n][i] == -infinity();
      left_out = __any_sync(0xffffffffu, left_out);
      if (threadIdx.x % 32 == 0) exchange.leaves_out[half][threadIdx.x % kWarpgroup / 32] = left_out;
    }
    Weights made;
    const bool grown = make_weights<Type>(made, scores, rows, rescale, unit);
    if (kOthers) end_sums(Constant<0>(), tile - 1);
    ptx::named_barrier_sync(kSelf + half, kWarpgroup);  // nobody multiplies by the other's weights any more
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_of_lane(first_row, 0, i);
#pragma unroll
      for (int n = 0; n < KEY_COLUMNS; ++n)
        *reinterpret_cast<unsigned*>(weight_tile + tile_offset(row, n, KEY_COLUMNS) + threadIdx.x % 4 * 2) =
            made[n / 2][0][n % 2 * 2 + i];
      if (threadIdx.x % 4 == 0) exchange.row_max[half][row] = rows.row_max[0][i];
    }
    if (may_leave_out) {
      const uint4 any = *reinterpret_cast<const uint4*>(exchange.leaves_out[half]);
      if (any.x | any.y | any.z | any.w) {
        keep_finite_values<Type>(k_tiles + half * K_TILE);
        ptx::fence_proxy_async();
        ptx::named_barrier_sync(kSelf + half, kWarpgroup);
      }
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_arrive(kWeights + half, kWorkers);
    rescale_all(grown);
    const ptx::MatrixDescriptor values = ptx::found_anew(own_values);
#pragma unroll
    for (int step = 0; step < TILE_KEYS / 16; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[step][0][i] = kOthers ? ptx::copied_now(made[step][0][i]) : made[step][0][i];
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int step = 0; step < TILE_KEYS / 16; ++step)
        Products<Type>::template multiply<1>(sums[slice][0], weights[step][0], values_of(values, slice, step), true);
      ptx::wgmma_commit();
    }
    add_weights<Type>(rows, made);
    end_sums(Constant<0>(), tile);
  };

  if (n_tiles > 0) ptx::await(&copies.rows, 0);
  if (half == 0 && n_tiles > 0) {
    start_scores(Constant<kEarly>(), 0);
    start_scores(Constant<kLate>(), 0);
    ptx::wgmma_wait<0>();
    ptx::wgmma_received(scores[0]);
    finish_own(0, Constant<false>());
#pragma unroll 1
    for (int tile = 2; tile < n_tiles; tile += 2) {
      start_others();
      start_scores(Constant<kEarly>(), tile);
      end_sums(Constant<1>(), tile - 1);
      start_scores(Constant<kLate>(), tile);
      ptx::wgmma_wait<0>();
      ptx::wgmma_received(scores[0]);
      finish_own(tile, Constant<false>());
    }
  } else {
#pragma unroll 1
    for (int tile = 1; tile < n_tiles; tile += 2) {
      start_scores(Constant<kEarly>(), tile);
      start_scores(Constant<kLate>(), tile);
      ptx::wgmma_wait<0>();
      ptx::wgmma_received(scores[0]);
      start_others();
      finish_own(tile, Constant<true>());
    }
  }
  if (n_tiles > 0 && n_tiles % 2 == half) {
    start_others();
    end_sums(Constant<0>(), n_tiles - 1);
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(rows.row_sum[0][i]);
    if (threadIdx.x % 4 == 0) exchange.row_sum[half][row_of_lane(first_row, 0, i)] = sum;
  }
  ptx::named_barrier_sync(kEnd, kWorkers);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row_of_lane(first_row, 0, i);
    rows.row_sum[0][i] = exchange.row_sum[0][row] + exchange.row_sum[1][row];
  }
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice)
    end_rows<Type>(call, place, sums[slice], rows, first_row, (half * kSlices + slice) * SLICE_COLUMNS,
                   general ? 1.0f : call.scale, out, lse, sinks, state_sums, state_rows);
}
