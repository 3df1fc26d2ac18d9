// Barriers of a block: __syncthreads and its variants are barrier 0 over the whole block, bar.sync
// and bar.arrive use the others over a stated number of threads.
#include "runner.h"

namespace cudasim {

namespace {

struct Barrier {
  int expected;  // threads; 0: the whole block
  int n_arrived, n_true, n_waiting, n_going_on;
  Site site;
  uint32_t phase;
  int result[2];  // of the last two phases: nobody can lag further behind
  int arrived[kMaxThreads];
  int going_on[kMaxThreads];  // those that sync; the others only arrive
  Fiber* waiting[kMaxThreads];
};
Barrier barriers[kMaxNamedBarriers];

bool strict() { return current.launch->flags & kStrictBarriers; }

int threads_needed(const Barrier& barrier) {
  return barrier.expected ? barrier.expected : current.n_threads - n_exited();
}

Barrier& arrive(int id, int expected, bool predicate, Site site) {
  if (id < 0 || id >= kMaxNamedBarriers)
    fail(Fault::kBarrier, site, "barrier %d: there are %d", id, kMaxNamedBarriers);
  if (expected % kWarpSize)
    fail(Fault::kBarrier, site, "barrier %d for %d threads: not a multiple of the warp size", id, expected);
  Barrier& barrier = barriers[id];
  if (barrier.n_arrived == 0) {
    barrier.site = site;
    barrier.expected = expected;
  } else if (barrier.expected != expected) {
    fail(Fault::kBarrier, site, "barrier %d: %d threads expected here, %d by those that wait on line %d", id,
         expected, barrier.expected, barrier.site.line);
  } else if (expected == 0 && barrier.site.line != site.line && strict()) {
    fail(Fault::kBarrier, site,
         "divergent __syncthreads: %d threads wait at the one on line %d, this thread at another",
         barrier.n_arrived, barrier.site.line);
  }
  if (expected == 0 && n_exited() && strict())
    fail(Fault::kBarrier, site, "__syncthreads although %d threads of the block have returned", n_exited());
  barrier.arrived[barrier.n_arrived++] = current_thread;
  barrier.n_true += predicate;
  return barrier;
}

void clear(Barrier& barrier) {
  barrier.n_arrived = barrier.n_true = barrier.n_waiting = barrier.n_going_on = 0;
}

void release(Barrier& barrier) {
  ++progress;
  barrier.result[barrier.phase++ & 1] = barrier.n_true;
  race_sync_threads(barrier.arrived, barrier.n_arrived, barrier.going_on, barrier.n_going_on);
  for (int i = 0; i < barrier.n_waiting; ++i) make_ready(barrier.waiting[i]);
  clear(barrier);
}

}  // namespace

int barrier_sync(int id, int expected, bool predicate, Site site) {
  Barrier& barrier = arrive(id, expected, predicate, site);
  const uint32_t phase = barrier.phase;
  barrier.going_on[barrier.n_going_on++] = current_thread;
  if (barrier.n_arrived == threads_needed(barrier)) {
    release(barrier);
    // Otherwise the last thread to arrive would always be the first to go on.
    if (current.launch->order == static_cast<uint32_t>(Order::kRandom)) yield();
  } else {
    barrier.waiting[barrier.n_waiting++] = current_fiber();
    block_current_thread(WaitKind::kBarrier, site);
  }
  return barrier.result[phase & 1];
}

void barrier_arrive(int id, int expected, Site site) {
  Barrier& barrier = arrive(id, expected, false, site);
  if (barrier.n_arrived == threads_needed(barrier)) release(barrier);
}

void reset_barriers() {
  for (Barrier& barrier : barriers) clear(barrier);
}

void barriers_thread_exited(int) {
  Barrier& barrier = barriers[0];
  if (barrier.n_arrived == 0 || barrier.expected != 0) return;
  if (strict())
    fail(Fault::kBarrier, barrier.site, "%d threads wait at __syncthreads, but a thread of the block returns",
         barrier.n_arrived);
  if (barrier.n_arrived == threads_needed(barrier)) release(barrier);
}

}  // namespace cudasim
