// Bytes that the copy engine brings as they lie.
#include "bulk.cuh"

extern "C" __global__ void bulk_bytes(const uint4* source, uint4* target, int n_bytes, int from, int to) {
  extern __shared__ __align__(16) uint4 there[];
  __shared__ ptx::MemoryBarrier ready;
#ifdef BUG_PROXY  // a write that the copy goes over, unknown to its engine
  if (threadIdx.x < 8) there[threadIdx.x] = source[0];
#endif
  if (threadIdx.x == 0) {
    ptx::make_memory_barrier(&ready, 1);
    ptx::memory_barriers_made();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::arrive_expecting(&ready, n_bytes);
    ptx::copy_bulk(reinterpret_cast<unsigned char*>(there) + to, reinterpret_cast<const unsigned char*>(source) + from,
                   n_bytes, &ready);
  }
#ifndef BUG_WAIT
  ptx::await(&ready, 0);
#endif
  for (int i = threadIdx.x; i < n_bytes / 16; i += blockDim.x) target[i] = there[i + to / 16];
}
