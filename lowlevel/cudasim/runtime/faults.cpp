// How a fault leaves the process: a report in shared memory, then _exit. Nothing is cleaned up,
// because nothing can be trusted any more; Python starts a fresh runner for the next launch.
#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "runner.h"

namespace cudasim {

uint64_t progress;

namespace {

uint64_t last_progress;
int idle_ticks, idle_ticks_allowed;
constexpr int kTickMilliseconds = 250;

bool in_library(uintptr_t pc) { return pc >= current.library_base && pc < current.library_end; }

// A return address points behind its call; one byte back lies within it.
void add_frame(uintptr_t pc, bool is_return_address) {
  Report& report = *current.report;
  if (!in_library(pc) || report.n_frames == kMaxFrames) return;
  report.frames[report.n_frames++] = pc - current.library_base - (is_return_address ? 1 : 0);
}

void add_backtrace() {
  void* frames[64];
  const int n = backtrace(frames, 64);
  for (int i = 0; i < n; ++i) add_frame(reinterpret_cast<uintptr_t>(frames[i]), true);
}

void fill_report(Fault fault, const char* format, va_list arguments) {
  Report& report = *current.report;
  vsnprintf(report.message, sizeof report.message, format, arguments);
  report.n_frames = report.n_other_frames = 0;
  report.line = 0;
  if (current.in_kernel) {
    const uint3 block = *current.built_ins->block_index, thread = *current.built_ins->thread_index;
    const uint32_t blocks[3] = {block.x, block.y, block.z}, threads[3] = {thread.x, thread.y, thread.z};
    memcpy(report.block, blocks, sizeof blocks);
    memcpy(report.thread, threads, sizeof threads);
  }
  report.fault = static_cast<uint32_t>(fault);
}

[[noreturn]] void leave() {
  __atomic_store_n(&current.shared_launch->failed, 1, __ATOMIC_SEQ_CST);
  _exit(3);
}

// The argument that `address` lies in or near, and how far off.
bool describe_argument(uintptr_t address, char* text, size_t size) {
  const Region* nearest = nullptr;
  uint64_t nearest_distance = 1ull << 29;
  for (uint32_t i = 0; i < current.launch->n_regions; ++i) {
    const Region& region = current.launch->regions[i];
    const uint64_t distance = address < region.begin  ? region.begin - address
                              : address >= region.end ? address - region.end + 1
                                                      : 0;
    if (distance < nearest_distance) nearest = &region, nearest_distance = distance;
  }
  if (!nearest) return false;
  const long offset = (long)(address - nearest->begin), element = nearest->element;
  const long index = offset >= 0 ? offset / element : -((-offset + element - 1) / element);
  snprintf(text, size, "%s[%ld] (it has %lu elements of %ld bytes)", nearest->name, index,
           (unsigned long)((nearest->end - nearest->begin) / element), element);
  return true;
}

void report_fault(Fault fault, const char* format, ...) __attribute__((format(__printf__, 2, 3)));
void report_fault(Fault fault, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fill_report(fault, format, arguments);
  va_end(arguments);
}

// The instruction itself: in a backtrace it would pass for a return address, and name the line before.
uintptr_t interrupted_pc(void* context) {
  const auto* machine = static_cast<ucontext_t*>(context);
#if defined(__x86_64__)
  return machine->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
  return machine->uc_mcontext.pc;
#else
  (void)machine;
  return 0;
#endif
}

void on_memory_signal(int signal_number, siginfo_t* info, void* context) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  const char* verb = "access to";
#if defined(__x86_64__)
  const auto* machine = static_cast<ucontext_t*>(context);
  if (info->si_code != SI_KERNEL) verb = machine->uc_mcontext.gregs[REG_ERR] & 2 ? "write to" : "read of";
#endif
  char where[256];
  if (info->si_code == SI_KERNEL && signal_number == SIGSEGV)
    report_fault(Fault::kMisaligned, "a vector load or store at a misaligned address (or a wild pointer)");
  else if (in_fiber_guard(address))
    report_fault(Fault::kCrash, "the thread's stack overflowed: too large local arrays, or recursion");
  else if (address < 4096)
    report_fault(Fault::kOutOfBounds, "%s address 0x%lx: a null pointer", verb, (unsigned long)address);
  else if (describe_shared_address(address, where, sizeof where))
    report_fault(Fault::kOutOfBounds, "out of bounds: %s %s", verb, where);
  else if (describe_argument(address, where, sizeof where)) {
    bool inside = false;
    for (uint32_t i = 0; i < current.launch->n_regions; ++i)
      inside |= address >= current.launch->regions[i].begin && address < current.launch->regions[i].end;
    report_fault(Fault::kOutOfBounds, "%s: %s %s",
                 inside ? "not allowed (the pointer is declared const)" : "out of bounds", verb, where);
  } else
    report_fault(Fault::kOutOfBounds, "out of bounds: %s 0x%lx, which is no argument's memory", verb,
                 (unsigned long)address);
  add_frame(interrupted_pc(context), false);
  add_backtrace();
  leave();
}

void on_arithmetic_signal(int signal_number, siginfo_t*, void* context) {
  report_fault(Fault::kUndefined, signal_number == SIGFPE ? "integer division by zero"
                                                          : "illegal instruction (unreachable code reached)");
  add_frame(interrupted_pc(context), false);
  add_backtrace();
  leave();
}

void on_tick(int, siginfo_t*, void* context) {
  if (!current.in_kernel || progress != last_progress) {
    last_progress = progress;
    idle_ticks = 0;
    return;
  }
  if (++idle_ticks < idle_ticks_allowed) return;
  report_fault(Fault::kHang,
               "no thread has passed a barrier or returned for %u s of computing: an endless loop, or a "
               "spin-wait for something that cannot happen",
               current.launch->hang_seconds);
  add_frame(interrupted_pc(context), false);
  add_backtrace();
  // Between two threads there is no line to name: look again at the next ticks.
  if (!current.report->n_frames && idle_ticks < idle_ticks_allowed + 8) {
    current.report->fault = static_cast<uint32_t>(Fault::kNone);
    return;
  }
  leave();
}

void handle(int signal_number, void (*handler)(int, siginfo_t*, void*)) {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigaction(signal_number, &action, nullptr);
}

}  // namespace

void install_signal_handlers(int hang_seconds) {
  static bool installed = false;
  if (!installed) {
    installed = true;
    static char stack[1 << 17];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    handle(SIGSEGV, on_memory_signal);
    handle(SIGBUS, on_memory_signal);
    handle(SIGFPE, on_arithmetic_signal);
    handle(SIGILL, on_arithmetic_signal);
    handle(SIGVTALRM, on_tick);
    void* frame;
    backtrace(&frame, 1);  // loads libgcc now: a signal handler must not
  }
  idle_ticks = 0;
  idle_ticks_allowed = hang_seconds * 1000 / kTickMilliseconds;
  // Computing time, not time of day: a busy machine must not look like a hang.
  const itimerval every = {{0, kTickMilliseconds * 1000}, {0, kTickMilliseconds * 1000}};
  setitimer(ITIMER_VIRTUAL, &every, nullptr);
}

void remove_hang_timer() {
  const itimerval never = {};
  setitimer(ITIMER_VIRTUAL, &never, nullptr);
}

void fail(Fault fault, Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fill_report(fault, format, arguments);
  va_end(arguments);
  snprintf(current.report->file, sizeof current.report->file, "%s", site.file ? site.file : "");
  current.report->line = site.file ? site.line : 0;
  add_backtrace();
  leave();
}

void fail_at(Fault fault, const void* pc, const void* other_pc, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fill_report(fault, format, arguments);
  va_end(arguments);
  add_frame(reinterpret_cast<uintptr_t>(pc), true);
  if (in_library(reinterpret_cast<uintptr_t>(other_pc))) {
    current.report->n_other_frames = 1;
    current.report->other_frames[0] = reinterpret_cast<uintptr_t>(other_pc) - current.library_base - 1;
  }
  add_backtrace();
  leave();
}

const char* describe_thread(uint64_t block, int thread, char* text, size_t size) {
  const uint32_t* grid = current.launch->grid;
  const uint32_t* shape = current.launch->block;
  snprintf(text, size, "block (%lu,%lu,%lu) thread (%u,%u,%u)", (unsigned long)(block % grid[0]),
           (unsigned long)(block / grid[0] % grid[1]), (unsigned long)(block / grid[0] / grid[1]),
           thread % shape[0], thread / shape[0] % shape[1], thread / shape[0] / shape[1]);
  return text;
}

}  // namespace cudasim
