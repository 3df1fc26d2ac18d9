// One runner process: loads kernel libraries and runs the blocks of a launch, taking the next one
// from a counter it shares with its siblings. Usage: runner CONTROL_FD DATA_FD INDEX, commands as
// single bytes on standard input, each answered by one byte on it.
#include <dlfcn.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <map>
#include <string>

#include "runner.h"

namespace cudasim {

Current current;

namespace {

int data_fd;
Control* control;

struct Library {
  const Kernel* kernels;
  BuiltIns* built_ins;
  bool race_mode;
  uintptr_t base, end;
  Registered registered;
};

int find_end(dl_phdr_info* info, size_t, void* pointer) {
  Library& library = *static_cast<Library*>(pointer);
  if (info->dlpi_addr != library.base) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i)
    if (info->dlpi_phdr[i].p_type == PT_LOAD)
      library.end = library.base + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
  return 1;
}

const Library& open_library(const char* path) {
  static std::map<std::string, Library> libraries;
  auto known = libraries.find(path);
  if (known != libraries.end()) return known->second;
  begin_registration();
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) fail(Fault::kLaunch, {nullptr, 0}, "cannot load the compiled kernels: %s", dlerror());
  Library library = {};
  library.registered = end_registration();
  library.kernels = static_cast<const Kernel*>(dlsym(handle, "cudasim_kernels"));
  library.built_ins = static_cast<BuiltIns*>(dlsym(handle, "cudasim_built_ins"));
  library.race_mode = *static_cast<const bool*>(dlsym(handle, "cudasim_race_mode"));
  Dl_info info;
  dladdr(library.kernels, &info);
  library.base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  dl_iterate_phdr(find_end, &library);
  return libraries[path] = library;
}

// One line a kernel: its name, its parameters' names, then for each of them code, count, bytes, bytes and alignment of
// what it points to, and whether that is const. Then one line a __device__ variable: name, bytes, bytes of an
// element, address.
void describe() {
  control->description[0] = 0;  // there may be nothing to say
  const Library& library = open_library(control->launch.library);
  size_t used = 0;
  auto print = [&](const char* format, auto... values) {
    const size_t room = sizeof control->description - used;
    const int n = snprintf(control->description + used, room, format, values...);
    if ((size_t)n >= room) fail(Fault::kLaunch, {nullptr, 0}, "too many kernels in one library");
    used += n;
  };
  for (const Kernel* kernel = library.kernels; kernel->name; ++kernel) {
    print("%s\t%s\t", kernel->name, kernel->parameter_names);
    for (int i = 0; i < kernel->n_parameters; ++i) {
      const Parameter& p = kernel->parameters[i];
      print("%s %d %u %u %u %d;", p.code, p.count, p.bytes, p.pointee, p.alignment, (int)p.is_const);
    }
    print("\n");
  }
  for (const DeviceVariable& variable : library.registered.device_variables)
    print("__device__\t%s\t%zu\t%zu\t%zu\n", variable.name, variable.bytes, variable.element,
          (size_t)variable.address);
}

// What the __device__ variables start with, one behind the other at the start of the data.
void write_initial_values() {
  off_t offset = 0;
  for (const DeviceVariable& variable : open_library(control->launch.library).registered.device_variables) {
    if (pwrite(data_fd, variable.initial, variable.bytes, offset) != (ssize_t)variable.bytes)
      fail(Fault::kLaunch, {nullptr, 0}, "cannot write down what %s starts with", variable.name);
    offset += (off_t)variable.bytes;
  }
}

void map_extents(const Launch& launch) {
  for (uint32_t i = 0; i < launch.n_extents; ++i) {
    const Extent& extent = launch.extents[i];
    if (!extent.bytes) continue;
    void* address = reinterpret_cast<void*>(extent.address);
    void* mapped = mmap(address, extent.bytes, PROT_READ | (extent.writable ? PROT_WRITE : 0),
                        MAP_SHARED | MAP_FIXED | MAP_POPULATE, data_fd, (off_t)extent.file_offset);
    if (mapped == MAP_FAILED)
      fail(Fault::kLaunch, {nullptr, 0}, "cannot map %lu bytes of arguments", (unsigned long)extent.bytes);
  }
}

void unmap_extents(const Launch& launch) {
  for (uint32_t i = 0; i < launch.n_extents; ++i)
    if (launch.extents[i].bytes) munmap(reinterpret_cast<void*>(launch.extents[i].address), launch.extents[i].bytes);
}

void set_flush_denormals(bool flush) {
#if defined(__x86_64__)
  _MM_SET_FLUSH_ZERO_MODE(flush ? _MM_FLUSH_ZERO_ON : _MM_FLUSH_ZERO_OFF);
  _mm_setcsr(flush ? _mm_getcsr() | 0x40 : _mm_getcsr() & ~0x40u);  // denormals are zero
#else
  (void)flush;
#endif
}

// The n-th block to run. Random order: an odd multiplier permutes a power of two, so walk the
// smallest one that holds all blocks and skip what lies beyond.
uint64_t block_at(uint64_t n, uint64_t n_blocks) {
  const Launch& launch = control->launch;
  switch (static_cast<Order>(launch.order)) {
    case Order::kFifo: return n;
    case Order::kReverse:
    case Order::kLifo: return n_blocks - 1 - n;
    case Order::kRandom: break;
  }
  uint64_t size = 1;
  while (size < n_blocks) size *= 2;
  uint64_t block = n;
  do block = (block * 0x9E3779B97F4A7C15ull + launch.seed) & (size - 1);
  while (block >= n_blocks);
  return block;
}

void launch(int index) {
  Launch& launch = control->launch;
  Report& report = control->reports[index];
  const Library& library = open_library(launch.library);
  race_mode = library.race_mode;
  current.built_ins = library.built_ins;
  current.registered = &library.registered;
  current.library_base = library.base;
  current.library_end = library.end;
  current.kernel = &library.kernels[launch.kernel];
  current.n_threads = (int)(launch.block[0] * launch.block[1] * launch.block[2]);
  void* arguments[kMaxParameters];
  alignas(kParameterAlignment) static unsigned char parameters[kMaxParameterBytes];
  memcpy(parameters, launch.parameters, sizeof parameters);
  for (uint32_t i = 0; i < launch.n_parameters; ++i) arguments[i] = parameters + launch.parameter_offset[i];
  current.arguments = arguments;
  *library.built_ins->grid_dim = dim3(launch.grid[0], launch.grid[1], launch.grid[2]);
  *library.built_ins->block_dim = dim3(launch.block[0], launch.block[1], launch.block[2]);
  *library.built_ins->threads_per_block = (unsigned)current.n_threads;

  map_extents(launch);
  begin_shared_launch();
  race_begin_launch();
  n_switches = 0;
  install_signal_handlers((int)launch.hang_seconds);
  set_flush_denormals(launch.flags & kFlushDenormals);
  const uint64_t n_blocks = (uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2];
  while (!__atomic_load_n(&launch.failed, __ATOMIC_RELAXED)) {
    const uint64_t n = __atomic_fetch_add(&launch.next_block, 1, __ATOMIC_RELAXED);
    if (n >= n_blocks) break;
    current.block = block_at(n, n_blocks);
    *library.built_ins->block_index = {(unsigned)(current.block % launch.grid[0]),
                                       (unsigned)(current.block / launch.grid[0] % launch.grid[1]),
                                       (unsigned)(current.block / launch.grid[0] / launch.grid[1])};
    run_block();
    ++report.blocks;
  }
  set_flush_denormals(false);
  remove_hang_timer();
  race_end_launch();
  unmap_extents(launch);
  report.switches = n_switches;
}

// Python's end of the socket closes when Python is gone, whatever became of it: do not outlive it,
// not even inside an endless kernel.
void* watch_parent(void*) {
  pollfd end = {0, POLLRDHUP, 0};
  while (poll(&end, 1, -1) < 0 || !(end.revents & (POLLHUP | POLLRDHUP | POLLERR))) {
  }
  _exit(0);
}

void start_watching() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the kernel's signals belong to the main thread
  pthread_t thread;
  pthread_create(&thread, nullptr, watch_parent, nullptr);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace

int device_printf(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (n < 0) return n;
  if (n >= (int)sizeof text) n = sizeof text - 1;
  Launch& launch = *current.shared_launch;
  const uint32_t at = __atomic_fetch_add(&launch.output_used, n, __ATOMIC_RELAXED);
  if (at + n <= kOutputBytes) memcpy(launch.output + at, text, n);
  return n;
}

}  // namespace cudasim

int main(int, char** arguments) {
  using namespace cudasim;
  const int index = atoi(arguments[3]);
  data_fd = atoi(arguments[2]);
  control = static_cast<Control*>(
      mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(arguments[1]), 0));
  if (control == MAP_FAILED) return 1;
  current.launch = current.shared_launch = &control->launch;
  current.report = &control->reports[index];
  start_watching();
  char command;
  while (read(0, &command, 1) == 1) {
    if (command == 'L') launch(index);
    if (command == 'D') describe();
    if (command == 'V') write_initial_values();
    if (write(0, &command, 1) != 1) break;
  }
  return 0;
}
