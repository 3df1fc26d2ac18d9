// State of one runner process, and what its parts offer each other.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include <cudasim/kernel_table.h>
#include <cudasim/runtime.h>

#include "protocol.h"

namespace cudasim {

// What a library registers while it loads: pointers that the runtime sets before each block, and variables.
struct DynamicPointer {
  void** pointer;
  size_t alignment, element;
};
struct Registered {
  std::vector<DynamicPointer> dynamic_pointers;
  std::vector<DeviceVariable> device_variables;
};

// The launch that runs now.
struct Current {
  const Launch* launch;
  Launch* shared_launch;  // the same, for its counters
  Report* report;
  const Kernel* kernel;
  BuiltIns* built_ins;
  const Registered* registered;
  void** arguments;
  uintptr_t library_base, library_end;
  int n_threads;
  uint64_t block;  // linear index
  bool in_kernel;
};
extern Current current;

// faults.cpp ---------------------------------------------------------------------------------------
void install_signal_handlers(int hang_seconds);
void remove_hang_timer();
[[noreturn]] void fail_at(Fault fault, const void* pc, const void* other_pc, const char* format, ...)
    __attribute__((format(__printf__, 4, 5)));
const char* describe_thread(uint64_t block, int thread, char* text, size_t size);
extern uint64_t progress;  // counts barriers passed, meetings completed, threads returned

// scheduler.cpp ------------------------------------------------------------------------------------
struct Fiber;
enum class WaitKind : uint8_t {
  kNothing,
  kBarrier,
  kCollective,
  kMemoryBarrier
};
void run_block();
void block_current_thread(WaitKind kind, Site site);  // returns once make_ready was called for it
void make_ready(Fiber* fiber);
Fiber* current_fiber();
bool has_exited(int thread);
int n_exited();
uint64_t random_number();
bool in_fiber_guard(uintptr_t address);
extern uint64_t n_switches;

// barrier.cpp, collectives.cpp ----------------------------------------------------------------------
void reset_barriers();
void reset_collectives();
void barriers_thread_exited(int thread);
void collectives_thread_exited(int thread);

// shared_memory.cpp -----------------------------------------------------------------------------------
void begin_shared_launch();
void check_shared_slack();
bool describe_shared_address(uintptr_t address, char* text, size_t size);
constexpr unsigned kSharedWindow = 1u << 18;  // bytes of addresses that shared memory may have on a device
bool find_in_window(const void* pointer, unsigned* window_address);
unsigned char* at_window(unsigned window_address, size_t bytes);  // null: no variable is there

// registration.cpp --------------------------------------------------------------------------------------
void begin_registration();
Registered end_registration();
void set_dynamic_pointers();  // for the block that begins

// async_copy.cpp --------------------------------------------------------------------------------------
void reset_async_copies();

// bulk.cpp --------------------------------------------------------------------------------------------
void reset_bulk();
bool describe_memory_barriers(char* text, size_t size);  // what those that are waited for lack

// wgmma.cpp ----------------------------------------------------------------------------------------------
void reset_wgmma();
void note_shared_write(const void* address, size_t bytes);  // by this thread, as all but wgmma see it
void fence_shared_write(const void* address, size_t bytes);       // undoes that
int unfenced_writer(unsigned window_address);  // of the 16 bytes there: thread, or -1

// race_log.cpp: does nothing unless the library was compiled in race mode -----------------------------
void race_begin_launch();
void race_begin_block();
void race_add_shared(const SharedVariable& variable);
void race_end_launch();
void race_sync_warp(int warp, uint32_t lanes);
void race_sync_threads(const int* arrived, int n_arrived, const int* going_on, int n_going_on);
// An asynchronous copy is issued, and taken as complete.
void race_begin_copy(const void* destination, size_t bytes, const void* pc);
void race_end_copy(const void* destination, size_t bytes, const void* pc);
// Up to which count a thread that waits has waited for every warp: what arrivals hand over.
struct Knowledge {
  uint32_t of_warp[kMaxThreads / kWarpSize];
};
void race_hand_over(Knowledge& knowledge);  // all that this thread did and knows
void race_take_over(const Knowledge& knowledge);
// When it is for this thread, and whether what another one did then certainly happened before now.
uint32_t race_now();
bool race_is_after(int thread, uint32_t time);
// A bulk copy: its write is this thread's at its beginning; from its end on others may read.
void race_end_bulk_copy(const void* destination, size_t bytes);
extern bool race_mode;

void fill_poison(void* address, size_t bytes);

}  // namespace cudasim
