// Barriers and warp collectives: the sum of 96 numbers, three warps.
//
// Planted bugs: BUG_SOME (a barrier that half of the threads reach), BUG_RETURN (an early return
// before one), BUG_TWO (two different ones), BUG_LANES (a shuffle that half a warp reaches),
// BUG_MASK (a lane missing from its own mask), BUG_GONE (a shuffle from a lane that has returned),
// BUG_COUNT (a named barrier with different counts), BUG_LAUNCH_BOUNDS, BUG_LARGE (static shared memory).
#include "ptx.cuh"

#ifdef BUG_LAUNCH_BOUNDS
constexpr int kMost = 64;
#else
constexpr int kMost = 96;
#endif

extern "C" __global__ void __launch_bounds__(kMost, 1) sum(const int* __restrict__ x, int* __restrict__ y) {
  __shared__ int partial[3];
#ifdef BUG_LARGE
  __shared__ int large[48 * 256];
  large[threadIdx.x] = 1;
#endif
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#ifdef BUG_RETURN
  if (threadIdx.x == 40) return;
#endif
  int total = x[threadIdx.x];
#ifdef BUG_GONE
  if (threadIdx.x == 33) return;
#endif
#ifdef BUG_LANES
  if (lane < 16)
#endif
    for (int offset = 16; offset; offset /= 2) total += __shfl_xor_sync(0xffffffffu, total, offset);
#ifdef BUG_MASK
  total += __shfl_sync(0x0000ffffu, total, 0);
#endif
  if (lane == 0) partial[warp] = total;
#ifdef BUG_SOME
  if (threadIdx.x < 48) __syncthreads();
  __syncwarp();
#elif defined(BUG_TWO)
  if (warp == 0)
    __syncthreads();
  else
    __syncthreads();
#else
  __syncthreads();
#endif
#ifdef BUG_COUNT
  ptx::named_barrier_sync(3, warp == 2 ? 96 : 64);
#endif
  if (threadIdx.x < 3) {
    int all = partial[threadIdx.x];
    all = __reduce_add_sync(7, all);
    if (threadIdx.x == 0) y[0] = all;
  }
  const int n_odd = __syncthreads_count(x[threadIdx.x] & 1);
  const bool any = __syncthreads_or(x[threadIdx.x] > 1000), all = __syncthreads_and(x[threadIdx.x] >= 0);
  if (threadIdx.x == 0) y[1] = n_odd, y[2] = any, y[3] = all;
}

// Thread 0 raises a flag that the others wait for. BUG_NO_FLAG: it does not.
extern "C" __global__ void wait_for_flag(int* __restrict__ y) {
  __shared__ int flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
#ifndef BUG_NO_FLAG
  if (threadIdx.x == blockDim.x - 1) atomicExch(&flag, 7);
#endif
  while (atomicAdd(&flag, 0) == 0) {
  }
  y[threadIdx.x] = atomicAdd(&flag, 0);
}
