// threadIdx and its kin. Every kernel library has its own copy, which the runtime sets each time
// it lets another thread run; kernels read them as plain static variables, without a call.
#pragma once
#include <cudasim/runtime.h>
#include <cudasim/vector_types.h>

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static constexpr int warpSize = cudasim::kWarpSize;
static unsigned cudasim_threads_per_block;

namespace cudasim {

// Stands at the start of every kernel that has __launch_bounds__.
inline void check_launch_bounds(unsigned most, unsigned = 0, unsigned = 0, Site site = Site::here()) {
  if (cudasim_threads_per_block > most)
    fail(Fault::kLaunch, site, "%u threads a block, but __launch_bounds__ allows %u",
         cudasim_threads_per_block, most);
}

// ... and __cluster_dims__: clusters themselves are not simulated.
inline void check_cluster_dims(unsigned x, unsigned y = 1, unsigned z = 1, Site site = Site::here()) {
  if (gridDim.x % x || gridDim.y % y || gridDim.z % z)
    fail(Fault::kLaunch, site, "a grid of (%u, %u, %u) blocks is no whole number of clusters of (%u, %u, %u)",
         gridDim.x, gridDim.y, gridDim.z, x, y, z);
}

}  // namespace cudasim
