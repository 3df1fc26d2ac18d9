// Race mode: every load and store is logged and compared with who touched the byte before.
//
// Two accesses to one byte, at least one of them a write, are a race unless the same thread made
// both, both are atomic, or a barrier (for lanes of one warp also __syncwarp) lies between them.
// "Lies between" is decided by vector clocks: each warp counts its synchronisations, each warp
// knows up to which count it has waited for every other warp, and each lane the same of its
// warp's lanes. Blocks are never ordered among each other.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "runner.h"

namespace cudasim {

bool race_mode;

namespace {

constexpr int kWarps = kMaxThreads / kWarpSize;
constexpr uint32_t kUnwritten = 1;
// Flags in Record::time.
constexpr uint32_t kAtomicBit = 0x80000000u;
constexpr uint32_t kInFlightBit = 0x40000000u;  // the write is a cp.async nobody has waited for
constexpr uint32_t kTimeMask = kInFlightBit - 1;

struct Record {
  uint32_t who;   // (linear block + 1) * 1024 + thread; 0: nobody, kUnwritten: poison from Python
  uint32_t time;  // the warp's count then, and flags
  uint32_t pc;    // offset into the library
};
struct Cell {  // one for each byte
  Record writer;
  Record readers[2];  // of two threads, so that a writer is a stranger to at least one of them
};
struct Area {
  uintptr_t begin, end;              // all mapped bytes
  uintptr_t valid_begin, valid_end;  // those that one variable or argument covers
  Cell* cells;
  const SharedVariable* shared;  // null: memory of arguments
};
Area areas[kMaxExtents + 256];
int n_areas, last_area;
uintptr_t lowest, highest;

uint32_t warp_time[kWarps];
uint32_t warp_knows[kWarps][kWarps];
uint32_t lane_knows[kMaxThreads][kWarpSize];

Area& add_area(uintptr_t begin, uintptr_t end) {
  Area& area = areas[n_areas++];
  area = {};
  area.begin = begin;
  area.end = end;
  area.cells = static_cast<Cell*>(mmap(nullptr, (end - begin) * sizeof(Cell), PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (area.cells == MAP_FAILED)
    fail(Fault::kLaunch, {nullptr, 0}, "race mode: no memory for the access log of %zu bytes", (size_t)(end - begin));
  lowest = std::min(lowest, begin);
  highest = std::max(highest, end);
  return area;
}

Area* find_area(uintptr_t address) {
  if (address < lowest || address >= highest) return nullptr;
  if (last_area < n_areas && address >= areas[last_area].begin && address < areas[last_area].end)
    return &areas[last_area];
  for (int i = 0; i < n_areas; ++i)
    if (address >= areas[i].begin && address < areas[i].end) {
      last_area = i;
      return &areas[i];
    }
  return nullptr;
}

const Region* find_region(uintptr_t begin, uintptr_t end) {
  for (uint32_t i = 0; i < current.launch->n_regions; ++i)
    if (begin >= current.launch->regions[i].begin && end <= current.launch->regions[i].end)
      return &current.launch->regions[i];
  return nullptr;
}

bool is_valid(const Area& area, uintptr_t begin, uintptr_t end) {
  if (begin >= area.valid_begin && end <= area.valid_end) return true;
  return !area.shared && find_region(begin, end);
}

void name_address(const Area& area, uintptr_t address, char* text, size_t size) {
  if (area.shared) {
    const size_t index = (address - area.valid_begin) / area.shared->element;
    snprintf(text, size, "shared %s[%zu]", area.shared->name, index);
  } else if (const Region* region = find_region(address, address + 1)) {
    snprintf(text, size, "%s[%zu]", region->name, (size_t)(address - region->begin) / region->element);
  } else {
    snprintf(text, size, "memory beside an argument");
  }
}

uint32_t block_of(const Record& record) { return record.who / kMaxThreads; }  // plus 1
uint32_t own_block() { return (uint32_t)current.block + 1; }

// Did the recorded access certainly happen before what the current thread does now?
bool is_ordered(const Record& record, bool shared) {
  if (record.who <= kUnwritten) return true;
  if (block_of(record) != own_block()) return shared;  // shared memory starts afresh in each block
  const int other = record.who % kMaxThreads, self = current_thread;
  if (other == self) return true;
  const uint32_t time = record.time & kTimeMask;
  if (other / kWarpSize == self / kWarpSize) return time < lane_knows[self][other % kWarpSize];
  return time < warp_knows[self / kWarpSize][other / kWarpSize];
}

const char* verb(bool is_write, bool is_atomic) {
  return is_atomic ? (is_write ? "atomic update" : "volatile read") : is_write ? "write"
                                                                               : "read";
}

[[noreturn]] void fail_race(const Area& area, uintptr_t address, bool writes, bool atomic, const Record& other,
                            bool other_writes, const void* pc) {
  char name[96], who[96];
  name_address(area, address, name, sizeof name);
  describe_thread(block_of(other) - 1, other.who % kMaxThreads, who, sizeof who);
  const char* missing = block_of(other) != own_block() ? "blocks of one launch are not ordered"
                        : other.who % kMaxThreads / kWarpSize == (uint32_t)current_thread / kWarpSize
                            ? "no __syncwarp or barrier between"
                            : "no barrier between";
  fail_at(Fault::kRace, pc, reinterpret_cast<const void*>(current.library_base + other.pc),
          "race on %s: %s at {here}, %s by %s at {other}, %s", name, verb(writes, atomic),
          verb(other_writes, other.time & kAtomicBit), who, missing);
}

void remember_reader(Cell& cell, const Record& reader, bool shared) {
  for (Record& slot : cell.readers)
    if (slot.who == reader.who || is_ordered(slot, shared)) {
      slot = reader;
      return;
    }
  cell.readers[1] = reader;
}

void check_byte(const Area& area, Cell& cell, uintptr_t address, const Record& own, bool reads, bool writes,
                bool atomic, const void* pc) {
  const bool shared = area.shared != nullptr;
  const bool unwritten = shared ? block_of(cell.writer) != own_block() : cell.writer.who == kUnwritten;
  if (reads && unwritten) {
    char name[96];
    name_address(area, address, name, sizeof name);
    fail_at(Fault::kUninitialised, pc, nullptr, "read of %s, which nobody has written", name);
  }
  if (cell.writer.time & kInFlightBit && !unwritten) {
    char name[96];
    name_address(area, address, name, sizeof name);
    fail_at(Fault::kRace, pc, reinterpret_cast<const void*>(current.library_base + cell.writer.pc),
            "race on %s: %s at {here}, but no wait has covered the asynchronous copy to it issued at {other}", name,
            verb(writes, atomic));
  }
  const bool both_atomic = atomic && (cell.writer.time & kAtomicBit);
  if (!both_atomic && !is_ordered(cell.writer, shared))
    fail_race(area, address, writes, atomic, cell.writer, true, pc);
  if (writes) {
    for (const Record& reader : cell.readers)
      if (!(atomic && (reader.time & kAtomicBit)) && !is_ordered(reader, shared))
        fail_race(area, address, true, atomic, reader, false, pc);
    cell.writer = own;
  } else {
    remember_reader(cell, own, shared);
  }
}

void set_in_flight(const void* destination, size_t bytes, uint32_t flag) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(destination);
  if (Area* area = find_area(address))
    for (size_t i = 0; i < bytes; ++i) {
      uint32_t& time = area->cells[address + i - area->begin].writer.time;
      time = (time & ~kInFlightBit) | flag;
    }
}

}  // namespace

void log_access(const void* pointer, size_t bytes, Access access, const void* pc) {
  if (!race_mode || !current.in_kernel) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  Area* area = find_area(address);
  if (!area) return;  // the thread's own stack, or a constant
  if (!pc) pc = __builtin_return_address(0);
  const bool writes = access != Access::kRead && access != Access::kAtomicRead;
  const bool reads = access != Access::kWrite && access != Access::kAtomicWrite;
  const bool atomic = access != Access::kRead && access != Access::kWrite;
  if (!is_valid(*area, address, address + bytes)) {
    char name[96];
    name_address(*area, address, name, sizeof name);
    fail_at(Fault::kOutOfBounds, pc, nullptr, "out of bounds: %s of %zu bytes at %s", verb(writes, atomic), bytes,
            name);
  }
  const Record own = {own_block() * kMaxThreads + current_thread,
                      warp_time[current_thread / kWarpSize] | (atomic ? kAtomicBit : 0),
                      (uint32_t)(reinterpret_cast<uintptr_t>(pc) - current.library_base)};
  for (size_t i = 0; i < bytes; ++i)
    check_byte(*area, area->cells[address + i - area->begin], address + i, own, reads, writes, atomic, pc);
  if (writes && area->shared) note_shared_write(pointer, bytes);
}

void race_begin_copy(const void* destination, size_t bytes, const void* pc) {
  if (!race_mode) return;
  // As a write now, against those who still use what was there ...
  log_access(destination, bytes, Access::kWrite, pc);
  set_in_flight(destination, bytes, kInFlightBit);
}

void race_end_copy(const void* destination, size_t bytes, const void* pc) {
  if (!race_mode) return;
  // ... and again when it is done: until a barrier that follows, it is ordered for its thread only.
  set_in_flight(destination, bytes, 0);
  log_access(destination, bytes, Access::kWrite, pc);
}

void race_begin_launch() {
  if (!race_mode) return;
  const Launch& launch = *current.launch;
  if ((uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2] >= (1u << 22) - 1)
    fail(Fault::kLaunch, {nullptr, 0}, "race mode: at most %u blocks", (1u << 22) - 2);
  lowest = ~(uintptr_t)0;
  highest = 0;
  for (uint32_t i = 0; i < launch.n_extents; ++i) {
    const Extent& extent = launch.extents[i];
    if (extent.bytes) add_area(extent.address, extent.address + extent.bytes);
  }
  for (uint32_t i = 0; i < launch.n_regions; ++i) {
    const Region& region = launch.regions[i];
    Area* area = find_area(region.begin);
    if (!area || region.begin == region.end) continue;
    area->valid_begin = region.begin;
    area->valid_end = region.end;
    // What Python's empty() or a pool has poisoned counts as unwritten.
    for (uintptr_t word = (region.begin + 3) & ~(uintptr_t)3; word + 4 <= region.end; word += 4) {
      if (memcmp(reinterpret_cast<const void*>(word), &kPoison, 4) != 0) continue;
      for (int byte = 0; byte < 4; ++byte) area->cells[word + byte - area->begin].writer.who = kUnwritten;
    }
  }
}

void race_end_launch() {
  for (int i = 0; i < n_areas; ++i) munmap(areas[i].cells, (areas[i].end - areas[i].begin) * sizeof(Cell));
  n_areas = 0;
}

void race_begin_block() {
  if (!race_mode) return;
  for (uint32_t& time : warp_time) time = 1;
  memset(warp_knows, 0, sizeof warp_knows);
  memset(lane_knows, 0, sizeof lane_knows[0] * current.n_threads);
}

void race_add_shared(const SharedVariable& variable) {
  if (!race_mode || !variable.bytes) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(variable.address);
  for (int i = 0; i < n_areas; ++i)
    if (areas[i].shared == &variable) return;
  // Up to the ends of its pages, to see accesses that miss it by little.
  Area& area = add_area(begin & ~(uintptr_t)4095, (begin + variable.bytes + 4095) & ~(uintptr_t)4095);
  area.shared = &variable;
  area.valid_begin = begin;
  area.valid_end = begin + variable.bytes;
}

void race_sync_warp(int warp, uint32_t lanes) {
  if (!race_mode) return;
  const uint32_t now = ++warp_time[warp];
  uint32_t together[kWarpSize] = {};
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (lanes >> lane & 1)
      for (int other = 0; other < kWarpSize; ++other)
        together[other] = lanes >> other & 1
                              ? now
                              : std::max(together[other], lane_knows[warp * kWarpSize + lane][other]);
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (lanes >> lane & 1) memcpy(lane_knows[warp * kWarpSize + lane], together, sizeof together);
}

// All of `arrived` came to a barrier, `going_on` pass it; whole warps, as the ISA asks.
void race_sync_threads(const int* arrived, int n_arrived, const int* going_on, int n_going_on) {
  if (!race_mode) return;
  uint32_t together[kWarps] = {};
  bool took_part[kWarps] = {};
  for (int i = 0; i < n_arrived; ++i) {
    const int warp = arrived[i] / kWarpSize;
    if (took_part[warp]) continue;
    took_part[warp] = true;
    ++warp_time[warp];
    for (int other = 0; other < kWarps; ++other) together[other] = std::max(together[other], warp_knows[warp][other]);
  }
  for (int warp = 0; warp < kWarps; ++warp)
    if (took_part[warp]) together[warp] = warp_time[warp];
  for (int i = 0; i < n_going_on; ++i) {
    const int thread = going_on[i], warp = thread / kWarpSize;
    memcpy(warp_knows[warp], together, sizeof together);
    for (uint32_t& known : lane_knows[thread]) known = warp_time[warp];
  }
}

uint32_t race_now() { return warp_time[current_thread / kWarpSize]; }

bool race_is_after(int thread, uint32_t time) {
  return !race_mode || is_ordered({own_block() * kMaxThreads + thread, time, 0}, true);
}

void race_hand_over(Knowledge& knowledge) {
  if (!race_mode) return;
  const int own = current_thread / kWarpSize;
  ++warp_time[own];
  for (int warp = 0; warp < kWarps; ++warp)
    knowledge.of_warp[warp] = std::max(knowledge.of_warp[warp], warp_knows[own][warp]);
  knowledge.of_warp[own] = warp_time[own];
}

void race_take_over(const Knowledge& knowledge) {
  if (!race_mode) return;
  const int own = current_thread / kWarpSize;
  for (int warp = 0; warp < kWarps; ++warp)
    warp_knows[own][warp] = std::max(warp_knows[own][warp], knowledge.of_warp[warp]);
  for (uint32_t& known : lane_knows[current_thread]) known = std::max(known, knowledge.of_warp[own]);
}

void race_end_bulk_copy(const void* destination, size_t bytes) {
  if (race_mode) set_in_flight(destination, bytes, 0);
}

}  // namespace cudasim
