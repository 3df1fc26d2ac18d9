// Barriers and fences of a block.
#pragma once
#include <cudasim/runtime.h>

#define CUDASIM_SITE cudasim::Site site = cudasim::Site::here()

inline void __syncthreads(CUDASIM_SITE) { cudasim::barrier_sync(0, 0, false, site); }
inline int __syncthreads_count(int predicate, CUDASIM_SITE) {
  return cudasim::barrier_sync(0, 0, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, CUDASIM_SITE) {
  return cudasim::barrier_sync(0, 0, predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, CUDASIM_SITE) {
  return cudasim::barrier_sync(0, 0, predicate == 0, site) == 0;
}

// Threads of a block run on one core, one after another: their writes are always in order.
inline void __threadfence_block() {}
CUDASIM_NOT_LOGGED inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __threadfence(); }

inline void __nanosleep(unsigned) { cudasim::yield(); }
[[noreturn]] inline void __trap(CUDASIM_SITE) {
  cudasim::fail(cudasim::Fault::kAssertion, site, "__trap()");
}

#undef assert
#define assert(condition)                                                                   \
  ((condition) ? (void)0                                                                    \
               : cudasim::fail(cudasim::Fault::kAssertion, cudasim::Site::here(),           \
                               "assert(%s) does not hold", #condition))
#define printf cudasim::device_printf
