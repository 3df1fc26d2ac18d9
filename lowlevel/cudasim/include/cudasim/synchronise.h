// Barriers and fences of a block.
#pragma once
#include <time.h>

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
// Nanoseconds, and a chance for the others: a thread may spin until so much time has passed. clock() is the host's.
inline long long clock64() {
  cudasim::spin_hint();
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}
[[noreturn]] inline void __trap(CUDASIM_SITE) {
  cudasim::fail(cudasim::Fault::kAssertion, site, "__trap()");
}
