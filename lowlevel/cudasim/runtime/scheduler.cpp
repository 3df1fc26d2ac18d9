// The threads of a block as fibers on one OS thread.
//
// A fiber runs one CUDA thread after another until one of them has to wait; only then does another
// fiber take over. Kernels without barriers therefore need a single fiber and no switch at all.
// Which thread runs next is the schedule order: programs that depend on it have a bug, and running
// them in all four orders tends to show it.
#include <stdio.h>
#include <sys/mman.h>

#include <utility>

#include "fiber_switch.h"
#include "runner.h"

namespace cudasim {

struct Fiber {
  void* stack_pointer;
  char* stack;  // above one guard page
  int thread;
};

int current_thread;
uint64_t block_serial;
uint64_t n_switches;

namespace {

constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 64 << 10;
constexpr int kRing = kMaxThreads;  // a power of two, and no fewer than there are threads

Fiber fibers[kMaxThreads + 1];  // a thread may run on a fresh fiber while all others wait
char* stacks;
Fiber* idle_fibers[kMaxThreads + 1];
int n_fibers, n_idle;

Fiber* ready[kRing];  // a ring: entries first .. first + n_ready
int first_ready, n_ready;

int start_order[kMaxThreads];
uint3 thread_index[kMaxThreads];
int next_to_start, exited_count;
bool exited[kMaxThreads];
struct {
  WaitKind kind;
  Site site;
} waits[kMaxThreads];

Fiber* running;
void* scheduler_stack_pointer;
uint64_t random_state;

bool order_is(Order order) { return current.launch->order == static_cast<uint32_t>(order); }

void set_thread(int thread) {
  current_thread = thread;
  *current.built_ins->thread_index = thread_index[thread];
}

void switch_to(Fiber* next) {
  Fiber* previous = running;
  if (next != previous) {
    running = next;
    ++n_switches;
    switch_fiber(&previous->stack_pointer, next->stack_pointer);
  }
  // Back here once somebody switches to `previous` again.
  set_thread(running->thread);
}

[[noreturn]] void leave_block() {
  void* unused;
  switch_fiber(&unused, scheduler_stack_pointer);
  __builtin_unreachable();
}

[[noreturn]] void fail_deadlock() {
  // Who waits where, the largest groups first to be found.
  char text[600];
  int used = 0;
  bool told[kMaxThreads] = {};
  for (int thread = 0; thread < current.n_threads; ++thread) {
    if (exited[thread] || told[thread]) continue;
    int same = 0;
    for (int other = thread; other < current.n_threads; ++other)
      if (!exited[other] && waits[other].site.line == waits[thread].site.line &&
          waits[other].kind == waits[thread].kind) {
        told[other] = true;
        ++same;
      }
    if (used < (int)sizeof text - 120)
      used += snprintf(text + used, sizeof text - used, "%s%d (the first is thread %d) wait at a %s on line %d",
                       used ? ", " : "", same, thread,
                       waits[thread].kind == WaitKind::kBarrier         ? "barrier"
                       : waits[thread].kind == WaitKind::kMemoryBarrier ? "barrier in shared memory"
                                                                        : "warp collective",
                       waits[thread].site.line);
  }
  Site site = {nullptr, 0};
  for (int thread = 0; thread < current.n_threads && !site.file; ++thread)
    if (!exited[thread]) site = waits[thread].site;
  char lacking[300] = "";
  describe_memory_barriers(lacking, sizeof lacking);
  fail(Fault::kBarrier, site, "deadlock: of %d threads %d have returned, %s%s", current.n_threads, exited_count,
       text, lacking);
}

Fiber* take_oldest_ready() {
  Fiber* fiber = ready[first_ready];
  first_ready = (first_ready + 1) & (kRing - 1);
  --n_ready;
  return fiber;
}

Fiber* take_ready() {
  if (order_is(Order::kLifo)) return ready[(first_ready + --n_ready) & (kRing - 1)];
  if (order_is(Order::kRandom))
    std::swap(ready[first_ready], ready[(first_ready + random_number() % n_ready) & (kRing - 1)]);
  return take_oldest_ready();
}

void exit_thread(int thread) {
  exited[thread] = true;
  ++exited_count;
  ++progress;
  barriers_thread_exited(thread);
  collectives_thread_exited(thread);
}

// What every fiber runs: threads that have not started yet, one after another.
void fiber_main() {
  for (;;) {
    while (next_to_start < current.n_threads) {
      // In random order started threads may go on before all others have started.
      if (order_is(Order::kRandom) && n_ready && random_number() % 4 == 0) break;
      const int thread = start_order[next_to_start++];
      running->thread = thread;
      set_thread(thread);
      current.kernel->call(current.kernel->function, current.arguments);
      exit_thread(thread);
    }
    if (n_ready) {
      Fiber* self = running;
      idle_fibers[n_idle++] = self;
      switch_to(take_ready());
    } else if (next_to_start == current.n_threads) {
      if (exited_count == current.n_threads) leave_block();
      fail_deadlock();
    }
  }
}

void map_stacks() {
  const size_t each = kStackBytes + kGuardBytes;
  stacks = static_cast<char*>(mmap(nullptr, each * (kMaxThreads + 1), PROT_NONE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (int i = 0; i <= kMaxThreads; ++i) {
    fibers[i].stack = stacks + each * i + kGuardBytes;
    mprotect(fibers[i].stack, kStackBytes, PROT_READ | PROT_WRITE);
  }
}

Fiber* fresh_fiber() {
  Fiber* fiber = n_idle ? idle_fibers[--n_idle] : &fibers[n_fibers++];
  fiber->stack_pointer = prepare_stack(fiber->stack + kStackBytes, fiber_main);
  return fiber;
}

}  // namespace

Fiber* current_fiber() { return running; }
bool has_exited(int thread) { return exited[thread]; }
int n_exited() { return exited_count; }
void make_ready(Fiber* fiber) {
  waits[fiber->thread].kind = WaitKind::kNothing;
  ready[(first_ready + n_ready++) & (kRing - 1)] = fiber;
}

uint64_t random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

bool in_fiber_guard(uintptr_t address) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(stacks), each = kStackBytes + kGuardBytes;
  return stacks && address >= base && address < base + each * (kMaxThreads + 1) &&
         (address - base) % each < kGuardBytes;
}

void block_current_thread(WaitKind kind, Site site) {
  waits[current_thread] = {kind, site};
  const bool can_start = next_to_start < current.n_threads;
  const bool prefer_start = can_start && order_is(Order::kRandom) && random_number() % 2;
  if (n_ready && !prefer_start)
    switch_to(take_ready());
  else if (can_start)
    switch_to(fresh_fiber());
  else
    fail_deadlock();
}

void yield() {
  // Whatever the order, everybody gets a turn: the thread waited for may be any of them.
  Fiber* next = next_to_start < current.n_threads ? fresh_fiber() : n_ready ? take_oldest_ready()
                                                                            : nullptr;
  if (!next) return;
  make_ready(running);
  switch_to(next);
}

void spin_hint() {
  static unsigned calls;
  if (++calls % 64 == 0) yield();
}

void run_block() {
  if (!stacks) map_stacks();
  const Launch& launch = *current.launch;
  const int n_threads = current.n_threads;
  ++block_serial;
  random_state = (launch.seed + 1) * 0x9E3779B97F4A7C15ull + current.block * 0xBF58476D1CE4E5B9ull + 1;
  const bool backwards = order_is(Order::kReverse) || order_is(Order::kLifo);
  for (int i = 0; i < n_threads; ++i) {
    const uint32_t x = launch.block[0], y = launch.block[1];
    thread_index[i] = {i % x, i / x % y, i / x / y};
    start_order[i] = backwards ? n_threads - 1 - i : i;
    exited[i] = false;
    waits[i].kind = WaitKind::kNothing;
  }
  if (order_is(Order::kRandom))
    for (int i = n_threads - 1; i > 0; --i) std::swap(start_order[i], start_order[random_number() % (i + 1)]);
  n_fibers = n_idle = n_ready = first_ready = next_to_start = exited_count = 0;
  reset_barriers();
  reset_collectives();
  reset_async_copies();
  reset_wgmma();
  reset_bulk();
  race_begin_block();
  current.in_kernel = true;
  set_dynamic_pointers();
  running = fresh_fiber();
  switch_fiber(&scheduler_stack_pointer, running->stack_pointer);
  current.in_kernel = false;
  check_shared_slack();
}

}  // namespace cudasim
