// cp.async: a copy takes effect when a wait covers it. Until then its destination holds poison, so
// a wait that is missing, or covers too few groups, gives wrong results in every schedule order.
#include <string.h>

#include <vector>

#include "runner.h"

namespace cudasim {

namespace {

struct Copy {
  void* destination;
  const void* source;
  int bytes, source_bytes;
  uint64_t group;
  const void* pc;
};
struct Queue {  // of one thread
  std::vector<Copy> copies;
  uint64_t open_group;  // number of the group that the next commit closes
};
Queue queues[kMaxThreads];
int n_used;

void finish_groups_before(uint64_t group) {
  Queue& queue = queues[current_thread];
  size_t n_done = 0;
  while (n_done < queue.copies.size() && queue.copies[n_done].group < group) {
    const Copy& copy = queue.copies[n_done++];
    if (copy.source_bytes) log_access(copy.source, copy.source_bytes, Access::kRead, copy.pc);
    race_end_copy(copy.destination, copy.bytes, copy.pc);
    memcpy(copy.destination, copy.source, copy.source_bytes);
    memset(static_cast<char*>(copy.destination) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    note_shared_write(copy.destination, copy.bytes);
  }
  queue.copies.erase(queue.copies.begin(), queue.copies.begin() + n_done);
}

}  // namespace

void async_copy(void* destination, const void* source, int bytes, int source_bytes, Site site) {
  if (bytes != 4 && bytes != 8 && bytes != 16)
    fail(Fault::kMisaligned, site, "cp.async of %d bytes: 4, 8 or 16", bytes);
  if (source_bytes < 0 || source_bytes > bytes)
    fail(Fault::kOutOfBounds, site, "cp.async of %d bytes with a source size of %d", bytes, source_bytes);
  const uintptr_t both = reinterpret_cast<uintptr_t>(destination) |
                         (source_bytes ? reinterpret_cast<uintptr_t>(source) : 0);
  if (both & (bytes - 1))
    fail(Fault::kMisaligned, site, "cp.async of %d bytes between addresses %p and %p: not aligned", bytes, source,
         destination);
  const void* pc = __builtin_return_address(0);
  race_begin_copy(destination, bytes, pc);
  if (source_bytes) {  // a bad address shows here, not at the wait
    const auto* touched = static_cast<const volatile char*>(source);
    (void)touched[0], (void)touched[source_bytes - 1];
  }
  fill_poison(destination, bytes);
  Queue& queue = queues[current_thread];
  queue.copies.push_back({destination, source, bytes, source_bytes, queue.open_group, pc});
  if (current_thread >= n_used) n_used = current_thread + 1;
}

void async_commit() {
  if (current_thread >= n_used) n_used = current_thread + 1;
  ++queues[current_thread].open_group;
}

void async_wait(int groups_in_flight) {
  const uint64_t open = queues[current_thread].open_group;
  if (open > (uint64_t)groups_in_flight) finish_groups_before(open - groups_in_flight);
}

void async_wait_all() { finish_groups_before(queues[current_thread].open_group + 1); }

void reset_async_copies() {
  for (int thread = 0; thread < n_used; ++thread) {
    queues[thread].copies.clear();
    queues[thread].open_group = 0;
  }
  n_used = 0;
}

}  // namespace cudasim
