// Barriers in shared memory (mbarrier) and bulk copies that complete on them.
//
// What copies bring is written when a thread first waits for the phase that they belong to, or when the barrier
// is used for the next one. Until then their destination holds poison, so that a wait that is missing, or is for
// another phase, gives wrong results in every schedule order.
#include <stdio.h>
#include <string.h>

#include <vector>

#include "runner.h"

namespace cudasim {

namespace {

constexpr int kMaxBarriers = 256;
constexpr int kChunk = 16, kLine = 128, kAlignment = 1024;  // bytes
constexpr int kMostArrivals = (1 << 20) - 1, kMostBytes = (1 << 20) - 1;

struct Copied {
  unsigned char* destination;
  unsigned char bytes[kChunk];
};
struct MemoryBarrier {
  void* address;
  int maker;  // thread
  uint32_t made_at;
  int arrivals, n_missing;  // of this phase
  int expected_bytes, copied_bytes;
  uint32_t n_over;  // phases
  std::vector<Copied> copies;
  std::vector<Fiber*> waiting;
  Knowledge handed_over;  // in this phase
  Knowledge of_last;      // and in those that are over
};
MemoryBarrier barriers[kMaxBarriers];
int n_barriers;

const char* name_of(const void* address, char* text, size_t size) {
  if (!describe_shared_address(reinterpret_cast<uintptr_t>(address), text, size)) snprintf(text, size, "%p", address);
  return text;
}

MemoryBarrier& find(void* address, Site site) {
  for (int i = 0; i < n_barriers; ++i)
    if (barriers[i].address == address) return barriers[i];
  char name[120];
  fail(Fault::kBarrier, site, "%s is used as a barrier that nobody has made", name_of(address, name, sizeof name));
}

bool is_over(const MemoryBarrier& barrier) {
  return barrier.n_missing == 0 && barrier.expected_bytes == barrier.copied_bytes;
}

// The phase ends if nothing is missing any more.
void settle(MemoryBarrier& barrier, Site site) {
  if (barrier.n_missing == 0 && barrier.copied_bytes > barrier.expected_bytes) {
    char name[120];
    fail(Fault::kBarrier, site, "copies of %d bytes to a phase of the barrier %s that was told of %d",
         barrier.copied_bytes, name_of(barrier.address, name, sizeof name), barrier.expected_bytes);
  }
  if (!is_over(barrier)) return;
  for (const Copied& copy : barrier.copies) {
    race_end_bulk_copy(copy.destination, kChunk);
    memcpy(copy.destination, copy.bytes, kChunk);
  }
  barrier.copies.clear();
  for (Fiber* fiber : barrier.waiting) make_ready(fiber);
  barrier.waiting.clear();
  ++progress;
  ++barrier.n_over;
  barrier.n_missing = barrier.arrivals;
  barrier.expected_bytes = barrier.copied_bytes = 0;
  barrier.of_last = barrier.handed_over;
}

// Before the barrier is used: a phase that could end has ended. Nobody waits for it, or it would have.
MemoryBarrier& use(void* address, Site site, const void* pc) {
  MemoryBarrier& barrier = find(address, site);
  if (!race_is_after(barrier.maker, barrier.made_at)) {
    char name[120];
    fail_at(Fault::kRace, pc, nullptr, "race on the barrier %s: used by a thread that met nobody since it was made",
            name_of(address, name, sizeof name));
  }
  log_access(address, 8, Access::kAtomicUpdate, pc);
  settle(barrier, site);
  return barrier;
}

// The phase ends at once where somebody waits for it, else when somebody does.
void settle_for_waiting(MemoryBarrier& barrier, Site site) {
  if (!barrier.waiting.empty() || barrier.copied_bytes > barrier.expected_bytes) settle(barrier, site);
}

void maybe_yield() {
  if (current.launch->order == static_cast<uint32_t>(Order::kRandom)) yield();
}

// Of a copy to shared memory: it stays inside, overwrites nothing that is not fenced, and completes on the barrier.
MemoryBarrier& begin_copy(void* shared, unsigned window, int n_bytes, void* address, Site site, const void* pc) {
  if (!at_window(window, n_bytes)) {
    char name[120];
    fail(Fault::kOutOfBounds, site, "out of bounds: a bulk copy of %d bytes to %s", n_bytes,
         name_of(shared, name, sizeof name));
  }
  MemoryBarrier& barrier = use(address, site, pc);
  for (int offset = 0; offset < n_bytes; offset += kChunk)
    if (const int writer = unfenced_writer(window + offset); writer >= 0)
      fail_at(Fault::kRace, pc, nullptr,
              "a bulk copy overwrites shared memory that thread %d has written without fence.proxy.async afterwards",
              writer);
  race_begin_copy(shared, n_bytes, pc);
  fence_shared_write(shared, n_bytes);  // the engine's own
  return barrier;
}

// Until the phase is over the destination holds poison.
void put(MemoryBarrier& barrier, const Copied& copied) {
  fill_poison(copied.destination, kChunk);
  barrier.copies.push_back(copied);
}

void end_copy(MemoryBarrier& barrier, int n_bytes, Site site) {
  race_hand_over(barrier.handed_over);
  barrier.copied_bytes += n_bytes;
  settle_for_waiting(barrier, site);
  maybe_yield();
}

}  // namespace

void make_memory_barrier(void* address, int arrivals, Site site) {
  if (arrivals < 1 || arrivals > kMostArrivals)
    fail(Fault::kBarrier, site, "a barrier for %d arrivals; 1 to %d", arrivals, kMostArrivals);
  unsigned window;
  if (!find_in_window(address, &window) || window % 8)
    fail(Fault::kMisaligned, site, "a barrier at %p, which is no multiple of 8 in shared memory", address);
  for (int i = 0; i < n_barriers; ++i)
    if (barriers[i].address == address) fail(Fault::kBarrier, site, "a barrier is made where there is one");
  if (n_barriers == kMaxBarriers) fail(Fault::kBarrier, site, "more than %d barriers", kMaxBarriers);
  log_access(address, 8, Access::kWrite, __builtin_return_address(0));
  memset(address, 0, 8);
  MemoryBarrier& barrier = barriers[n_barriers++];
  barrier.address = address;
  barrier.maker = current_thread;
  barrier.made_at = race_now();
  barrier.arrivals = barrier.n_missing = arrivals;
  barrier.expected_bytes = barrier.copied_bytes = 0;
  barrier.n_over = 0;
  barrier.handed_over = barrier.of_last = {};
}

void arrive(void* address, int expected_bytes, Site site) {
  MemoryBarrier& barrier = use(address, site, __builtin_return_address(0));
  if (barrier.n_missing == 0)
    fail(Fault::kBarrier, site, "more arrivals than the %d that the barrier was made for", barrier.arrivals);
  if (expected_bytes < 0 || barrier.expected_bytes + expected_bytes > kMostBytes)
    fail(Fault::kBarrier, site, "%d bytes announced to a barrier; at most %d", expected_bytes, kMostBytes);
  race_hand_over(barrier.handed_over);
  barrier.expected_bytes += expected_bytes;
  --barrier.n_missing;
  settle_for_waiting(barrier, site);
  maybe_yield();
}

void await(void* address, unsigned parity, Site site) {
  MemoryBarrier& barrier = use(address, site, __builtin_return_address(0));
  while ((barrier.n_over & 1) == (parity & 1)) {
    barrier.waiting.push_back(current_fiber());
    block_current_thread(WaitKind::kMemoryBarrier, site);
  }
  race_take_over(barrier.of_last);
  maybe_yield();
}

void copy_box(void* shared, const void* map, int column, int row, int head, void* address, Site site) {
  const void* pc = __builtin_return_address(0);
  Box box;
  memcpy(&box, map, sizeof box);
  if (box.magic != Box::kMagic) fail(Fault::kLaunch, site, "a bulk copy by what is no TensorMap");
  unsigned window;
  if (!find_in_window(shared, &window) || window % kAlignment)
    fail(Fault::kMisaligned, site, "a bulk copy to %p, which is no multiple of %d in shared memory", shared, kAlignment);
  const int n_bytes = (int)(box.box[1] * box.box[2]) * kLine;
  MemoryBarrier& barrier = begin_copy(shared, window, n_bytes, address, site, pc);
  for (unsigned line = 0; line < box.box[1] * box.box[2]; ++line) {
    const long long at[2] = {(long long)row + line % box.box[1], (long long)head + line / box.box[1]};
    const bool exists = at[0] >= 0 && at[0] < (long long)box.lengths[1] && at[1] >= 0 && at[1] < (long long)box.lengths[2];
    for (int chunk = 0; chunk < kLine / kChunk; ++chunk) {
      const unsigned to = window + line * kLine + chunk * kChunk;
      const unsigned swizzled = to ^ ((to >> 7 & 7) << 4);
      Copied copied = {at_window(swizzled, kChunk), {}};
      for (int i = 0; i < kChunk / 2; ++i) {
        const long long x = (long long)column + chunk * (kChunk / 2) + i;
        if (!exists || x < 0 || x >= (long long)box.lengths[0]) continue;
        const auto* source = reinterpret_cast<const unsigned char*>(box.address + at[1] * box.strides[1] +
                                                                    at[0] * box.strides[0] + x * 2);
        log_access(source, 2, Access::kRead, pc);
        memcpy(copied.bytes + 2 * i, source, 2);
      }
      put(barrier, copied);
    }
  }
  end_copy(barrier, n_bytes, site);
}

void copy_bulk(void* shared, const void* global, int n_bytes, void* address, Site site) {
  const void* pc = __builtin_return_address(0);
  unsigned window;
  if (n_bytes < kChunk || n_bytes % kChunk || reinterpret_cast<uintptr_t>(global) % kChunk ||
      !find_in_window(shared, &window) || window % kChunk)
    fail(Fault::kMisaligned, site, "a bulk copy of %d bytes from %p to %p in shared memory; all are multiples of %d",
         n_bytes, global, shared, kChunk);
  MemoryBarrier& barrier = begin_copy(shared, window, n_bytes, address, site, pc);
  for (int at = 0; at < n_bytes; at += kChunk) {
    Copied copied = {at_window(window + at, kChunk), {}};
    const unsigned char* source = static_cast<const unsigned char*>(global) + at;
    log_access(source, kChunk, Access::kRead, pc);
    memcpy(copied.bytes, source, kChunk);
    put(barrier, copied);
  }
  end_copy(barrier, n_bytes, site);
}

bool describe_memory_barriers(char* text, size_t size) {
  size_t used = 0;
  for (int i = 0; i < n_barriers && used < size; ++i) {
    const MemoryBarrier& barrier = barriers[i];
    if (barrier.waiting.empty()) continue;
    char name[120];
    used += snprintf(text + used, size - used, "; the barrier %s lacks %d of %d arrivals and %d of %d bytes",
                     name_of(barrier.address, name, sizeof name), barrier.n_missing, barrier.arrivals,
                     barrier.expected_bytes - barrier.copied_bytes, barrier.expected_bytes);
  }
  return used > 0;
}

void reset_bulk() {
  for (int i = 0; i < n_barriers; ++i) {
    barriers[i].copies.clear();
    barriers[i].waiting.clear();
  }
  n_barriers = 0;
}

}  // namespace cudasim
