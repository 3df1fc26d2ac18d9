// Few rows of x: every warp streams rows of weights through shared memory of its own, a few at a time,
// with copies always a step ahead, and its lanes take the units of a row side by side.
#pragma once
#include "matmul_formats.cuh"

constexpr int kStreamThreads = 256, kStages = 2;

// Of a chunk a lane takes kBlocks blocks, or, of super-blocks, a unit.
template <class Format, int kRowsAtOnce, int kBlocks>
struct Stream {
  static constexpr int kRows = kRowsAtOnce, kLaneBlocks = kBlocks;
  static constexpr int kChunkBytes = 32 * kBlocks / Format::kUnits * Format::kBlockBytes;
  static constexpr int kPieces = kChunkBytes / 16 + 1, kPitch = 16 * kPieces;
  static constexpr int kSlotBytes = kRows * kPitch, kWarpBytes = kStages * kSlotBytes;
  static_assert(kChunkBytes % 16 == 0, "the skew of a row is the same in every chunk");
};

// Rows of one matrix that a warp works on.
struct StreamTask {
  const unsigned char* rows;  // the first one
  int first, last;            // its number, that of the last; those beyond are the last one again
  int group;
  bool whole;  // comes in pieces

  __device__ __forceinline__ const unsigned char* row(const MatmulCall& call, int i) const {
    return rows + (long long)min(i, last - first) * call.row_stride;
  }
  __device__ __forceinline__ int skew(const MatmulCall& call, int i) const {
    return skew_of(row(call, i), whole);
  }
};

// Where rows of x meet a matrix each, groups are the ids of these, and group g is slot g. Kernels without a register for
// more than `count` rows ask again whether there is such a matrix: out is NaN where there is none.
__device__ __forceinline__ bool are_ids(const MatmulCall& call) {
  return call.counted < 0;
}
__device__ __forceinline__ bool has_matrix(const int* __restrict__ groups, const MatmulCall& call, int index) {
  return !groups || !are_ids(call) || (unsigned)__ldg(groups + index) < (unsigned)-call.counted;
}
__device__ __forceinline__ int matrix_of(const int* __restrict__ groups, const MatmulCall& call, int index) {
  if (!are_ids(call)) return __ldg(groups + 3 * (long long)index);
  return has_matrix(groups, call, index) ? __ldg(groups + index) : 0;
}
__device__ __forceinline__ Group slots_of(const int* __restrict__ groups, const MatmulCall& call, int index,
                                          int width) {
  if (!groups || !are_ids(call)) return read_group(groups, call, index, width);
  return {0, index, 1};
}

template <int kRows>
__device__ __forceinline__ StreamTask read_task(const unsigned char* __restrict__ weights,
                                                const int* __restrict__ groups, const MatmulCall& call,
                                                unsigned task, unsigned row_tiles) {
  StreamTask result;
  result.group = 0;
  unsigned tile = task;
  if (groups) {
    result.group = task / row_tiles, tile = task % row_tiles;
    weights += matrix_of(groups, call, result.group) * call.expert_stride;
  }
  result.first = tile * kRows, result.last = call.n_rows - 1;
  result.rows = weights + (long long)result.first * call.row_stride;
  result.whole = copies_pieces(call, tile, row_tiles);
  return result;
}

// A lane's share of copying a task's rows, chunk after chunk: of each row pieces lane, lane + 32, ...
template <class S>
struct RowCopies {
  const unsigned char* from[S::kRows];  // the first of them, of the next chunk
  int left[S::kRows];                   // bytes from there to the row's end
  int most[S::kRows];                   // and to the end of what one chunk takes
  StreamTask task;

  __device__ __forceinline__ void start(const StreamTask& next_task, const MatmulCall& call, int lane) {
    task = next_task;
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) {
      const int skew = task.skew(call, i);
      from[i] = task.row(call, i) + (16 * lane - skew);
      left[i] = call.row_bytes + skew - 16 * lane;
      most[i] = S::kChunkBytes + (skew ? 16 : 0) - 16 * lane;
    }
  }

  // From the end of the rows on to others, `jump` bytes from these.
  __device__ __forceinline__ void move(long long jump, int n_chunks) {
#pragma unroll
    for (int i = 0; i < S::kRows; ++i)
      from[i] += jump - (long long)n_chunks * S::kChunkBytes, left[i] += n_chunks * S::kChunkBytes;
  }

  __device__ __forceinline__ void copy(unsigned char* slots, ptx::SharedPlace place, int offset,
                                       const MatmulCall& call, int chunk, int lane) {
    if (task.whole) {
#pragma unroll
      for (int i = 0; i < S::kRows; ++i) {
        const int n_bytes = min(left[i], most[i]);
#pragma unroll
        for (int at = 0; at < S::kPitch; at += 512)
          if (at < n_bytes) ptx::cp_async_16(place + (offset + 16 * lane + i * S::kPitch + at), from[i] + at);
        from[i] += S::kChunkBytes, left[i] -= S::kChunkBytes;
      }
      return;
    }
    const int done = chunk * S::kChunkBytes;
#pragma unroll 1
    for (int i = lane; i < S::kSlotBytes; i += 32) {
      const int byte = done + i % S::kPitch;
      slots[offset + i] = byte < call.row_bytes ? __ldg(task.row(call, i / S::kPitch) + byte) : 0;
    }
  }
};

// Sums over the lanes of a warp, N of them at once; lane l gets that of value l / (32 / N). Each lane of a
// pair `kStep` apart gives the half of its values that it does not keep.
template <int N, int kStep = 16>
__device__ __forceinline__ float sum_lanes(float (&values)[N], int lane) {
  constexpr int kHalf = N * kStep / 32;
  const bool upper = lane & kStep;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float first = values[i], second = values[i + kHalf];
    // (+x: the values themselves, no choice between their places, which would have to be in memory)
    const float given = upper ? +first : +second, kept = upper ? +second : +first;
    values[i] = kept + __shfl_xor_sync(0xffffffffu, given, kStep);
  }
  if constexpr (kHalf == 0) values[0] += __shfl_xor_sync(0xffffffffu, values[0], kStep);
  if constexpr (kStep > 1) return sum_lanes<N, kStep / 2>(values, lane);
  return values[0];
}

// Computes out for all groups. `Sums` collects a lane's part of Rows::kRows x kColumns products:
//   Rows (a Stream)
//   begin(), prepare(): once, by all warps, before the first copies and after them
//   start(first slot, count), total[row][column]
//   add(places, chunk): what a lane has of a chunk; places[i]: of row i the first of the lane's blocks
//   kPacks: short rows that lie side by side, as many as have 32 lanes, may count as one: x is the same for each
template <class Format, int kColumns, class Sums>
__device__ __forceinline__ void stream_products(Sums sums, const unsigned char* __restrict__ weights,
                                                void* __restrict__ out, const int* __restrict__ order,
                                                const int* __restrict__ groups, const MatmulCall& call,
                                                unsigned char* shared) {
  using S = typename Sums::Rows;
  constexpr int kWeights = S::kLaneBlocks * Format::kBlockWeights / Format::kUnits;  // a lane's of a chunk
  const int lane = threadIdx.x % 32;
  unsigned char* const slots = shared + threadIdx.x / 32 * S::kWarpBytes;
  const ptx::SharedPlace place = ptx::shared_place(slots);
  const unsigned row_tiles = (call.n_rows + S::kRows - 1) / S::kRows;
  const unsigned n_tasks = row_tiles * call.n_groups;
  const unsigned step = gridDim.x * (blockDim.x / 32);
  const int row_lanes = Sums::kPacks ? call.row_lanes : 32;
  const int n_lanes = row_lanes < 32 ? 32 : (call.columns + kWeights - 1) / kWeights;
  const int n_chunks = (n_lanes + 31) / 32;

  // From one task of a warp to its next all rows are as far apart, but for those beyond the last one. Where
  // skews are then the same too, nothing but the place in memory changes.
  const long long jump = (long long)step * S::kRows * call.row_stride;
  const bool alike = !groups && call.pieces == 2 && jump % 16 == 0;
  const unsigned first_task = blockIdx.x + gridDim.x * (threadIdx.x / 32);  // few tasks: of all blocks
  auto is_new = [&](unsigned task) { return !alike || task == first_task || task == row_tiles - 1; };

  sums.begin();
  // The copies run kStages - 1 chunks ahead of the sums.
  RowCopies<S> copies;
  StreamTask task;
  Group group;
  int places[S::kRows];
  unsigned copied_task = first_task, summed_task = first_task;
  int copied_chunk = 0, summed_chunk = 1 - kStages, slot = 0;
#pragma unroll 1
  while (true) {
    __syncwarp();
    if (copied_task < n_tasks) {
      if (copied_chunk == 0) {
        if (is_new(copied_task))
          copies.start(read_task<S::kRows>(weights, groups, call, copied_task, row_tiles), call, lane);
        else
          copies.move(jump, n_chunks);
      }
      copies.copy(slots, place, slot, call, copied_chunk, lane);
      if (++copied_chunk == n_chunks) copied_chunk = 0, copied_task += step;
    }
    ptx::cp_async_commit();
    slot = slot == (kStages - 1) * S::kSlotBytes ? 0 : slot + S::kSlotBytes;  // the oldest chunk's
    if (summed_chunk < 0) {
      if (++summed_chunk == 0) sums.prepare();
      continue;
    }
    if (summed_task >= n_tasks) break;
    if (summed_chunk == 0) {
      if (is_new(summed_task)) {
        task = read_task<S::kRows>(weights, groups, call, summed_task, row_tiles);
        group = slots_of(groups, call, task.group, kColumns);
#pragma unroll
        for (int i = 0; i < S::kRows; ++i)
          places[i] = i * S::kPitch + task.skew(call, i) +
                      lane / Format::kUnits * (S::kLaneBlocks * Format::kBlockBytes);
      } else {
        task.first += step * S::kRows;
      }
      sums.start(group.first, group.count);
    }
    ptx::cp_async_wait<kStages - 1>();
    __syncwarp();
    if (32 * summed_chunk + lane < n_lanes) {
      Place of_lane[S::kRows];
#pragma unroll
      for (int i = 0; i < S::kRows; ++i) of_lane[i] = {slots, slot + (places[i] & ~3), places[i] & kShiftMask<Format::kAlignment>};
      sums.add(of_lane, summed_chunk);
    }
    if (++summed_chunk < n_chunks) continue;
    summed_chunk = 0, summed_task += step;
    const bool is_there = has_matrix(groups, call, task.group);
    if (Sums::kPacks && row_lanes < 32) {
#pragma unroll
      for (int i = 0; i < S::kRows; ++i) {
        float sum = sums.total[i][0];
        for (int apart = row_lanes / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
        const int row = task.first + i;
        if (lane % row_lanes || row >= call.n_rows || group.count < 1) continue;
        const long long at = row_of_slot(order, group.first) * call.out_stride;
        store_out(out, at + row * (32 / row_lanes) + lane / row_lanes, is_there ? sum : __uint_as_float(0x7fc00000u),
                  call.out_type);
      }
      continue;
    }
    constexpr int kSums = S::kRows * kColumns;
    float values[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) values[i] = sums.total[i % S::kRows][i / S::kRows];
    float sum = sum_lanes(values, lane);
    if (!is_there) sum = __uint_as_float(0x7fc00000u);
    const int index = lane / (32 / kSums);
    const int row = task.first + index % S::kRows, column = index / S::kRows;
    if (lane % (32 / kSums) == 0 && column < group.count && row < call.n_rows)
      store_out(out, row_of_slot(order, group.first + column) * call.out_stride + row, sum, call.out_type);
  }
}
