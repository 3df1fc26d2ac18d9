// Host stand-in for CUDA's cooperative_groups.h: thread blocks, tiles of a warp, and a grid that cannot be
// synchronised. What the simulator cannot do does not compile, and says so.
#pragma once
#include <cudasim/prelude.h>

namespace cooperative_groups {

#define CUDASIM_NOT_HERE(WHAT) static_assert(sizeof(T) == 0, "cudasim: " WHAT)

class thread_block {
 public:
  static void sync(CUDASIM_SITE) { __syncthreads(site); }
  static unsigned thread_rank() {
    return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  }
  static unsigned num_threads() { return cudasim_threads_per_block; }
  static unsigned size() { return num_threads(); }
  static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
  static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
  static dim3 dim_threads() { return blockDim; }
  static dim3 group_dim() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

class grid_group {
 public:
  static unsigned long long num_blocks() { return (unsigned long long)gridDim.x * gridDim.y * gridDim.z; }
  static unsigned long long block_rank() {
    return ((unsigned long long)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  }
  static unsigned long long thread_rank() { return block_rank() * thread_block::size() + thread_block::thread_rank(); }
  static unsigned long long num_threads() { return num_blocks() * thread_block::size(); }
  static unsigned long long size() { return num_threads(); }
  static dim3 group_dim() { return gridDim; }
  static dim3 dim_blocks() { return gridDim; }
  static dim3 block_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
  static bool is_valid() { return false; }  // as after a launch that is not cooperative
  template <class T = int>
  static void sync() {
    CUDASIM_NOT_HERE("grid.sync(): blocks run one after another here; make it two launches");
  }
};
inline grid_group this_grid() { return {}; }

// `n` neighbouring threads of one warp.
template <unsigned n, class Parent = thread_block>
class thread_block_tile {
  static_assert(n > 0 && n <= 32 && (n & (n - 1)) == 0,
                "cudasim: tiles have 1, 2, 4, 8, 16 or 32 threads; larger ones are not simulated");
  static unsigned first_lane() { return (unsigned)cudasim::lane_id() & ~(n - 1); }
  // Threads that the block has: the last warp may be partial.
  static unsigned mask() {
    const unsigned before = (unsigned)cudasim::current_thread & ~31u;
    const unsigned lanes = cudasim_threads_per_block - before;
    const unsigned exist = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
    return exist & ((n == 32 ? 0xffffffffu : (1u << (n & 31)) - 1) << first_lane());
  }
  static unsigned mine(unsigned lanes) { return lanes >> first_lane(); }

 public:
  static void sync(CUDASIM_SITE) { __syncwarp(mask(), site); }
  static unsigned thread_rank() { return (unsigned)cudasim::lane_id() & (n - 1); }
  static constexpr unsigned num_threads() { return n; }
  static constexpr unsigned size() { return n; }
  // Which of the tiles that its parent was parted into, and how many they are.
  static unsigned meta_group_rank() { return Parent::thread_rank() / n; }
  static unsigned meta_group_size() { return (Parent::size() + n - 1) / n; }
  template <class T>
  static T shfl(T value, unsigned rank, CUDASIM_SITE) { return __shfl_sync(mask(), value, (int)rank, n, site); }
  template <class T>
  static T shfl_up(T value, unsigned delta, CUDASIM_SITE) { return __shfl_up_sync(mask(), value, delta, n, site); }
  template <class T>
  static T shfl_down(T value, unsigned delta, CUDASIM_SITE) { return __shfl_down_sync(mask(), value, delta, n, site); }
  template <class T>
  static T shfl_xor(T value, unsigned lanes, CUDASIM_SITE) {
    return __shfl_xor_sync(mask(), value, (int)lanes, n, site);
  }
  static int any(int predicate, CUDASIM_SITE) { return __any_sync(mask(), predicate, site); }
  static int all(int predicate, CUDASIM_SITE) { return __all_sync(mask(), predicate, site); }
  static unsigned ballot(int predicate, CUDASIM_SITE) { return mine(__ballot_sync(mask(), predicate, site)); }
  template <class T>
  static unsigned match_any(T value, CUDASIM_SITE) { return mine(__match_any_sync(mask(), value, site)); }
  template <class T>
  static unsigned match_all(T value, int& all_equal, CUDASIM_SITE) {
    return mine(__match_all_sync(mask(), value, &all_equal, site));
  }
  // For cooperative_groups/reduce.h: every thread gets the same, combined in the order of the threads.
  template <class T, class Combine>
  static T combined(T value, Combine combine, cudasim::Site site) {
    const cudasim::Round& round = cudasim::publish(mask(), cudasim::Collective::kReduce, site, value);
    bool any = false;
    for (int lane = 0; lane < cudasim::kWarpSize; ++lane) {
      if (!(round.present >> lane & 1)) continue;
      const T other = cudasim::published<T>(round, lane);
      value = any ? combine(value, other) : other;
      any = true;
    }
    return value;
  }
};

template <unsigned n, class Parent>
inline thread_block_tile<n, Parent> tiled_partition(const Parent&) { return {}; }

template <class Group>
inline void sync(const Group& group, CUDASIM_SITE) { group.sync(site); }
template <class Group>
inline auto thread_rank(const Group& group) { return group.thread_rank(); }
template <class Group>
inline auto group_size(const Group& group) { return group.size(); }

template <class T = int>
inline thread_block_tile<32> coalesced_threads() {
  CUDASIM_NOT_HERE(
      "coalesced_threads(): which threads run together is nothing the simulator knows; take "
      "tiled_partition<32>(this_thread_block()) and pass through it together");
  return {};
}
template <class T = int>
inline thread_block this_cluster() {
  CUDASIM_NOT_HERE("this_cluster(): clusters are not simulated");
  return {};
}
template <class T = int>
inline grid_group this_multi_grid() {
  CUDASIM_NOT_HERE("this_multi_grid(): several devices are not simulated");
  return {};
}
#undef CUDASIM_NOT_HERE

}  // namespace cooperative_groups
