// Where __shared__ variables live: each in pages of its own, against an inaccessible page.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "runner.h"

namespace cudasim {

namespace {

constexpr uintptr_t kPage = 4096;
constexpr size_t kStaticLimit = 48 << 10;  // nvcc refuses more
constexpr int kMaxVariables = 256;

struct Place {
  SharedVariable* variable;
  char* pages;
  size_t page_bytes;
  unsigned window;  // the address in 32 bits, as on a device
};
Place places[kMaxVariables];  // of this launch
int n_places;
SharedVariable dynamic_variable = {"dynamic shared memory", 0, 16, 1, nullptr, 0};
uint64_t first_block_of_launch;
constexpr unsigned kFirstInWindow = 1024;  // the system's own come before
unsigned next_in_window;

char* map_between_guards(size_t bytes) {
  char* pages = static_cast<char*>(mmap(nullptr, bytes + 2 * kPage, PROT_NONE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(pages + kPage, bytes, PROT_READ | PROT_WRITE);
  return pages + kPage;
}

size_t static_bytes() {
  size_t total = 0;
  for (int i = 0; i < n_places; ++i)
    if (places[i].variable != &dynamic_variable) total += places[i].variable->bytes;
  return total;
}

void fill(void* address, size_t bytes, uint32_t word);

// Once a launch: pages for the variable, and the pattern in those of their bytes it does not use.
void place(SharedVariable& variable) {
  if (n_places == kMaxVariables) fail(Fault::kLaunch, {nullptr, 0}, "too many shared variables");
  const size_t bytes = (variable.bytes + kPage - 1) / kPage * kPage;
  char* pages = map_between_guards(bytes);
  const size_t slack = (bytes - variable.bytes) / variable.alignment * variable.alignment;
  variable.address = pages + (current.launch->flags & kGuardStart ? 0 : slack);
  // Aligned as the variable is and no better.
  const unsigned window = next_in_window + (unsigned)(reinterpret_cast<uintptr_t>(variable.address) % 1024);
  next_in_window = (unsigned)((window + variable.bytes + 1023) / 1024 * 1024);
  places[n_places++] = {&variable, pages, bytes, window};
  fill(pages, bytes, current.launch->guard_fill);
  fill_poison(variable.address, variable.bytes);
  if (static_bytes() > kStaticLimit)
    fail(Fault::kLaunch, {nullptr, 0}, "%zu bytes of static shared memory; CUDA allows %zu", static_bytes(),
         kStaticLimit);
}

// Four-byte words at multiples of four, whatever the ends.
void fill(void* address, size_t bytes, uint32_t word) {
  char* begin = static_cast<char*>(address);
  char* end = begin + bytes;
  while (begin < end && (reinterpret_cast<uintptr_t>(begin) & 3)) {
    *begin = static_cast<char>(word >> (8 * (reinterpret_cast<uintptr_t>(begin) & 3)));
    ++begin;
  }
  for (; begin + 4 <= end; begin += 4) memcpy(begin, &word, 4);
  for (; begin < end; ++begin) *begin = static_cast<char>(word >> (8 * (reinterpret_cast<uintptr_t>(begin) & 3)));
}

bool is_intact_guard(const char* begin, const char* end) {
  for (const char* byte = begin; byte < end; ++byte)
    if (static_cast<unsigned char>(*byte) != (current.launch->guard_fill >> (8 * (reinterpret_cast<uintptr_t>(byte) & 3)) & 0xff))
      return false;
  return true;
}

}  // namespace

void fill_poison(void* address, size_t bytes) { fill(address, bytes, kPoison); }

void* prepare_shared(SharedVariable& variable) {
  if (variable.block < first_block_of_launch)
    place(variable);
  else
    fill_poison(variable.address, variable.bytes);
  variable.block = block_serial;
  race_add_shared(variable);
  return variable.address;
}

void* dynamic_shared(size_t alignment, size_t element) {
  const bool is_first = dynamic_variable.block != block_serial;
  if (is_first) {
    dynamic_variable.bytes = current.launch->dynamic_shared;
    if (alignment > dynamic_variable.alignment) dynamic_variable.alignment = alignment;
  }
  // Declared with several types, messages count in the smallest.
  if (is_first || element < dynamic_variable.element) dynamic_variable.element = element;
  return shared_address(dynamic_variable);
}

void begin_shared_launch() {
  for (int i = 0; i < n_places; ++i) munmap(places[i].pages - kPage, places[i].page_bytes + 2 * kPage);
  n_places = 0;
  next_in_window = kFirstInWindow;
  first_block_of_launch = block_serial + 1;
  dynamic_variable.alignment = current.launch->flags & kExactGuards ? 1 : 16;
}

bool find_in_window(const void* pointer, unsigned* window_address) {
  const char* wanted = static_cast<const char*>(pointer);
  for (int i = 0; i < n_places; ++i) {
    const SharedVariable& variable = *places[i].variable;
    if (wanted < variable.address || wanted >= variable.address + variable.bytes) continue;
    *window_address = places[i].window + (unsigned)(wanted - variable.address);
    return *window_address < kSharedWindow;
  }
  return false;
}

unsigned shared_window(const void* pointer) {
  unsigned address;
  if (!find_in_window(pointer, &address))
    fail(Fault::kOutOfBounds, {nullptr, 0}, "out of bounds: %p is no address in shared memory", pointer);
  return address;
}

unsigned char* at_window(unsigned window_address, size_t bytes) {
  for (int i = 0; i < n_places; ++i) {
    const SharedVariable& variable = *places[i].variable;
    const size_t offset = (size_t)window_address - places[i].window;  // huge if before
    if (offset < variable.bytes && offset + bytes <= variable.bytes)
      return reinterpret_cast<unsigned char*>(variable.address) + offset;
  }
  return nullptr;
}

// Writes that missed a variable but hit the rest of its pages.
void check_shared_slack() {
  for (int i = 0; i < n_places; ++i) {
    const SharedVariable& variable = *places[i].variable;
    if (variable.block != block_serial) continue;
    const char* end = variable.address + variable.bytes;
    const bool before_intact = is_intact_guard(places[i].pages, variable.address);
    if (before_intact && is_intact_guard(end, places[i].pages + places[i].page_bytes)) continue;
    current.in_kernel = true;  // the report shall name the block
    fail(Fault::kOutOfBounds, {nullptr, 0}, "out of bounds: the block wrote just %s shared variable %s (%zu bytes)",
         before_intact ? "behind" : "before", variable.name, variable.bytes);
  }
}

bool describe_shared_address(uintptr_t address, char* text, size_t size) {
  for (int i = 0; i < n_places; ++i) {
    const SharedVariable& variable = *places[i].variable;
    const uintptr_t pages = reinterpret_cast<uintptr_t>(places[i].pages);
    if (variable.block != block_serial || address < pages - kPage ||
        address >= pages + places[i].page_bytes + kPage)
      continue;
    const long offset = (long)(address - reinterpret_cast<uintptr_t>(variable.address));
    const long element = (long)variable.element;
    snprintf(text, size, "shared %s[%ld] (it has %zu elements of %ld bytes)", variable.name,
             offset >= 0 ? offset / element : -((-offset + element - 1) / element),
             variable.bytes / variable.element, element);
    return true;
  }
  return false;
}

}  // namespace cudasim
