// What compiled kernels and the runner process share: the calls a kernel makes into the runtime.
// The functions declared here live in the runner executable (../runtime); a kernel library is
// loaded into it and finds them there. Everything else under include/ is inline code on top.
#pragma once
#include <stddef.h>
#include <stdint.h>

// For functions whose own loads and stores race mode must not log.
#if defined(__clang__)
#define CUDASIM_NOT_LOGGED __attribute__((disable_sanitizer_instrumentation))
#else
#define CUDASIM_NOT_LOGGED __attribute__((no_sanitize("thread")))
#endif

// Kernel libraries are compiled with hidden symbols; these are found in the runner.
#pragma GCC visibility push(default)
namespace cudasim {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxNamedBarriers = 16;

// Memory that nobody has written yet holds this word, again and again. It is a NaN as float64,
// float32, bfloat16 and float16, and an unlikely integer, so that what was read too early shows.
constexpr uint32_t kPoison = 0xFFF7FFB5u;

// What went wrong; errors.py has one exception class for each, in this order.
enum class Fault : uint32_t {
  kNone,
  kOutOfBounds,
  kMisaligned,
  kUninitialised,
  kRace,
  kBarrier,
  kHang,
  kUndefined,
  kAssertion,
  kLaunch,
  kCrash,
};

// Where in the kernel's source a collective was called.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

[[noreturn]] void fail(Fault fault, Site site, const char* format, ...)
    __attribute__((format(__printf__, 3, 4)));

// The thread that runs now: its index in the block, x fastest.
extern int current_thread;
inline int lane_id() { return current_thread & (kWarpSize - 1); }

// ---- barriers of the block -------------------------------------------------------------------
// Waits until `expected` threads (0: the whole block) have arrived at barrier `id`; returns how
// many of them brought a true predicate.
int barrier_sync(int id, int expected, bool predicate, Site site);
void barrier_arrive(int id, int expected, Site site);

// ---- collectives of a warp -------------------------------------------------------------------
enum class Collective : uint32_t {
  kSync,
  kShuffle,
  kVote,
  kMatch,
  kReduce,
  kLoadMatrix,
  kMma
};

// One meeting of the lanes of a mask: what each lane brought, and what the last one made of it.
struct Round {
  uint32_t present;  // lanes that took part
  uint32_t result;   // for `complete` to fill
  alignas(16) unsigned char data[kWarpSize][16];
};
using Complete = void (*)(Round&);

// Publishes 16 bytes and waits for the other lanes of `mask`; the last one to come runs
// `complete`. The round stays readable until the caller's next meeting but one on this mask.
Round& meet(uint32_t mask, Collective kind, Site site, const void* value, Complete complete);

uint32_t active_mask();  // lanes of this warp that have not returned

// ---- shared memory ---------------------------------------------------------------------------
// One `__shared__` variable. The runtime places it so that its end (in some schedule orders: its
// start) touches an inaccessible page, and poisons it at the start of each block.
struct SharedVariable {
  const char* name;
  size_t bytes;
  size_t alignment;
  size_t element;  // bytes of one scalar element, for messages
  char* address;
  uint64_t block;  // serial of the block it was last prepared for
};

extern uint64_t block_serial;
void* prepare_shared(SharedVariable& variable);
inline void* shared_address(SharedVariable& variable) {
  return variable.block == block_serial ? variable.address : prepare_shared(variable);
}
void* dynamic_shared(size_t alignment, size_t element);
// `extern __shared__` at file scope, while a library loads.
void register_dynamic_shared(void** pointer, size_t alignment, size_t element);

// ---- variables of the device -------------------------------------------------------------------
struct DeviceVariable {
  const char* name;
  const void* initial;
  size_t bytes;
  size_t alignment;
  size_t element;  // bytes of one scalar element, for messages
  uintptr_t address;
};
void* register_device_variable(DeviceVariable variable);  // while a library loads; gives its address

// ---- asynchronous copies ---------------------------------------------------------------------
// The destination is poisoned at once and written when a wait covers the copy, so that reading too
// early shows. `source_bytes` < `bytes`: the rest is filled with zeros.
void async_copy(void* destination, const void* source, int bytes, int source_bytes, Site site);
void async_commit();
void async_wait(int groups_in_flight);
void async_wait_all();

// ---- tensor cores: completions of a meeting in which every lane publishes an MmaOperands* --------
struct MmaOperands {
  void* d;  // the lane's accumulators, read and written
  const uint32_t* a;
  const uint32_t* b;
};
void complete_mma_m16n8k16_f16(Round& round);
void complete_mma_m16n8k16_bf16(Round& round);
void complete_mma_m16n8k8_tf32(Round& round);
void complete_mma_m16n8k32_s8(Round& round);
void load_matrix(uint32_t* registers, int n_matrices, bool transposed, const void* row, Site site);

// ---- warpgroup products (wgmma.cuh) ---------------------------------------------------------------
// 64 rows by `columns`, 16 deep, in the order in which a thread issues them; all 128 threads of a warpgroup
// issue the same. Accumulators hold poison until a wait covers all products that write them.
enum class SmallFloat : uint32_t {
  f16,
  bf16
};
struct WarpgroupProduct {
  float* d;           // columns / 2 of this thread
  const uint32_t* a;  // 4 registers; null: by descriptor
  uint64_t a_matrix, b_matrix;
  int columns;
  SmallFloat type;
  bool transposed;   // B's columns lie one after another
  bool accumulates;  // else what d held does not count
};
void wgmma(const WarpgroupProduct& product, Site site);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups_in_flight, Site site);
void fence_proxy_async();
unsigned shared_window(const void* pointer);  // what __cvta_generic_to_shared gives on a device

// ---- barriers in shared memory, and bulk copies that complete on them (bulk.cuh) --------------------
// A copy's destination holds poison until a thread waits for the phase that it belongs to.
void make_memory_barrier(void* barrier, int arrivals, Site site);
void arrive(void* barrier, int expected_bytes, Site site);
void await(void* barrier, unsigned parity, Site site);
// What a TensorMap's bytes are here: cudasim/arguments.py writes them.
struct Box {
  uint64_t address;
  uint64_t lengths[3];  // of the axes: columns, rows, heads
  uint64_t strides[2];  // bytes: of rows, of heads
  uint32_t box[3];
  uint32_t magic;
  static constexpr uint32_t kMagic = 0x50414d54;
};
void copy_box(void* shared, const void* map, int column, int row, int head, void* barrier, Site site);
void copy_bulk(void* shared, const void* global, int n_bytes, void* barrier, Site site);

// ---- access log (race mode) --------------------------------------------------------------------
// volatile accesses count as atomic ones: they are how flags are polled.
enum class Access : uint32_t {
  kRead,
  kWrite,
  kAtomicRead,
  kAtomicWrite,
  kAtomicUpdate
};
void log_access(const void* address, size_t bytes, Access access, const void* pc);

// ---- the rest ------------------------------------------------------------------------------------
void yield();        // lets the other threads of the block run: for spin-waits
void spin_hint();    // called by atomics: yields now and then
int device_printf(const char* format, ...) __attribute__((format(__printf__, 1, 2)));

}  // namespace cudasim
#pragma GCC visibility pop
