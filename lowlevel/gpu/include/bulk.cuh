// Bulk copies of tiles (Hopper's copy engine) and the barriers in shared memory that they complete on: inline PTX
// under the same terms as in ptx.cuh.
//
// A phase of a MemoryBarrier is over when all arrivals that it was made for have come and all bytes that were
// announced have been written. Phases count from 0; who waits names the parity of the phase that is to be over:
// at first, waiting for 1 returns at once, waiting for 0 does not.
#pragma once

#include "ptx.cuh"

#ifdef CUDASIM
#define PTX_SITE , cudasim::Site site = cudasim::Site::here()
#define PTX_ONLY_SITE cudasim::Site site = cudasim::Site::here()
#else
#define PTX_SITE
#define PTX_ONLY_SITE
#endif

namespace ptx {

typedef unsigned long long MemoryBarrier;

// By one thread, before anybody uses it; `memory_barriers_made` and a barrier of the block must follow.
__device__ __forceinline__ void make_memory_barrier(MemoryBarrier* barrier, int arrivals PTX_SITE) {
#ifdef CUDASIM
  cudasim::make_memory_barrier(barrier, arrivals, site);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}
// What this thread has made may be used by the copy engine, too.
__device__ __forceinline__ void memory_barriers_made() {
#ifdef CUDASIM
  cudasim::fence_proxy_async();
#else
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void arrive(MemoryBarrier* barrier PTX_SITE) {
#ifdef CUDASIM
  cudasim::arrive(barrier, 0, site);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}
// And announces bytes that copies of this phase will bring.
__device__ __forceinline__ void arrive_expecting(MemoryBarrier* barrier, int bytes PTX_SITE) {
#ifdef CUDASIM
  cudasim::arrive(barrier, bytes, site);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}
// Until the phase of this parity is over.
__device__ __forceinline__ void await(MemoryBarrier* barrier, unsigned parity PTX_SITE) {
#ifdef CUDASIM
  cudasim::await(barrier, parity, site);
#else
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra OVER;\n"
      "bra AGAIN;\n"
      "OVER:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// A 16-bit array of up to three axes in global memory, the last one without gaps, as the host describes it to the
// copy engine (lowlevel/gpu/tensor_map.py): a kernel's parameter, by value.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// Starts copying a box of an array: 64 columns of some rows, a line of 128 bytes a row, swizzled as wgmma.cuh says,
// to a multiple of 1024 bytes. What lies outside the array is zeros. By one thread; complete when the phase of
// `barrier` is over, which must have had all the box's bytes announced.
__device__ __forceinline__ void copy_box(void* shared, const TensorMap& map, int column, int row, int head,
                                         MemoryBarrier* barrier PTX_SITE) {
#ifdef CUDASIM
  cudasim::copy_box(shared, &map, column, row, head, barrier, site);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(shared)), "l"(&map), "r"(column), "r"(row), "r"(head), "r"(shared_address(barrier))
      : "memory");
#endif
}

// Starts copying bytes as they lie, all multiples of 16: both addresses and how many. Complete as a box is.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes, MemoryBarrier* barrier PTX_SITE) {
#ifdef CUDASIM
  cudasim::copy_bulk(shared, global, bytes, barrier, site);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

// Brings the description itself near, before the first copy by it.
__device__ __forceinline__ void prefetch(const TensorMap& map) {
#ifndef CUDASIM
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

}  // namespace ptx

#undef PTX_SITE
#undef PTX_ONLY_SITE
