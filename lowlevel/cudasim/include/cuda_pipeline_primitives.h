// Host stand-in for CUDA's cuda_pipeline_primitives.h: cp.async by C functions. The mbarrier of
// __pipeline_arrive_on is not here.
#pragma once
#include <cudasim/runtime.h>

// `zfill`: so many of the bytes, the last ones, become zeros.
inline void __pipeline_memcpy_async(void* destination, const void* source, size_t bytes, size_t zfill = 0,
                                    cudasim::Site site = cudasim::Site::here()) {
  cudasim::async_copy(destination, source, (int)bytes, (int)(bytes - zfill), site);
}
inline void __pipeline_commit() { cudasim::async_commit(); }
inline void __pipeline_wait_prior(size_t groups_in_flight) { cudasim::async_wait((int)groups_in_flight); }
