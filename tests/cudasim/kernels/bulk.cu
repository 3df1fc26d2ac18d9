// Bulk copies and the barriers that they complete on.
#include "bulk.cuh"

// One box: shared memory as it then is.
extern "C" __global__ void bulk_box(const __grid_constant__ ptx::TensorMap map, uint4* image, int rows, int column,
                                    int row, int head) {
  extern __shared__ __align__(1024) uint4 tile[];
  __shared__ ptx::MemoryBarrier ready;
  if (threadIdx.x == 0) {
    ptx::make_memory_barrier(&ready, 1);
    ptx::memory_barriers_made();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::arrive_expecting(&ready, rows * 128);
    ptx::copy_box(tile, map, column, row, head, &ready);
  }
  ptx::await(&ready, 0);
  for (int i = threadIdx.x; i < rows * 8; i += blockDim.x) image[i] = tile[i];
}

// The sums of an array's columns, boxes of 8 rows by 64 columns: one warp copies into two places in turn, two
// others add. -DBUG_... leaves one thing out or gets it wrong.
constexpr int kRows = 8, kStages = 2, kAdders = 64;
extern "C" __global__ void bulk_sums(const __grid_constant__ ptx::TensorMap map, int* sums, int n_boxes) {
  extern __shared__ __align__(1024) unsigned short tiles[];
  __shared__ ptx::MemoryBarrier ready[kStages], free[kStages];
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::make_memory_barrier(&ready[stage], 1);
#ifndef BUG_MADE
      ptx::make_memory_barrier(&free[stage], kAdders);
#endif
    }
    ptx::memory_barriers_made();
  }
#ifdef BUG_PROXY  // a write that the copy goes over, unknown to its engine
  if (threadIdx.x == 40) tiles[5] = 7;
#endif
#ifndef BUG_SYNC
  __syncthreads();
#endif
  if (threadIdx.x < 32) {
    if (threadIdx.x != 0) return;
    for (int box = 0; box < n_boxes; ++box) {
      const int stage = box % kStages, turn = box / kStages;
#ifndef BUG_FREE
      if (turn > 0) ptx::await(&free[stage], turn - 1 & 1);
#endif
#if defined BUG_MORE_BYTES
      ptx::arrive_expecting(&ready[stage], kRows * 128 + 128);
#elif defined BUG_FEWER_BYTES
      ptx::arrive_expecting(&ready[stage], kRows * 128 - 128);
#elif defined BUG_NO_BYTES
      ptx::arrive(&ready[stage]);
#else
      ptx::arrive_expecting(&ready[stage], kRows * 128);
#endif
#ifdef BUG_ARRIVALS
      ptx::arrive(&ready[stage]);
#endif
      ptx::copy_box(tiles + stage * kRows * 64, map, 0, box * kRows, 0, &ready[stage]);
    }
    return;
  }
  const int column = threadIdx.x - 32;
  int sum = 0;
  for (int box = 0; box < n_boxes; ++box) {
    const int stage = box % kStages, turn = box / kStages;
#if defined BUG_PHASE
    ptx::await(&ready[stage], (turn & 1) ^ 1);
#elif !defined BUG_WAIT
    ptx::await(&ready[stage], turn & 1);
#endif
    for (int row = 0; row < kRows; ++row)
      sum += tiles[stage * kRows * 64 + row * 64 + ((column / 8 ^ row) & 7) * 8 + column % 8];
    ptx::arrive(&free[stage]);
  }
  sums[column] = sum;
}
