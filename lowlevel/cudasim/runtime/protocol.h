// The memory that Python and the runner processes share; protocol.py mirrors it field by field.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <cudasim/runtime.h>

namespace cudasim {

constexpr int kMaxExtents = 64;
constexpr int kMaxParameters = 64;
constexpr int kMaxParameterBytes = 4096;
constexpr int kParameterAlignment = 64;  // of each
constexpr int kMaxRunners = 64;
constexpr int kMaxFrames = 16;
constexpr int kOutputBytes = 1 << 16;

enum class Order : uint32_t {
  kFifo,
  kReverse,
  kRandom,
  kLifo
};

enum LaunchFlag : uint32_t {
  kFlushDenormals = 1,
  kStrictBarriers = 2,   // a barrier after some thread has returned is an error
  kGuardStart = 4,       // shared variables start at a guard page instead of ending at one
  kExactGuards = 8,      // dynamic shared memory is aligned as it is declared, not to 16 bytes
};

// Pages to map: bytes of the data file at a device address of their own, far from all others.
struct Extent {
  uint64_t address, file_offset, bytes;
  uint32_t writable, padding;
};

// What one array argument covers: its exact bytes, for messages and the access log.
struct Region {
  uint64_t begin, end;
  uint32_t extent, element;
  char name[40];
};

struct Launch {
  char library[1024];
  uint32_t kernel;
  uint32_t grid[3], block[3];
  uint32_t dynamic_shared;
  uint32_t order, flags, hang_seconds;
  uint32_t n_extents, n_regions, n_parameters;
  uint64_t seed;
  uint64_t next_block;  // blocks handed out so far, by all runners
  uint32_t failed;      // set by the first runner that finds a fault
  uint32_t output_used;
  uint32_t guard_fill;  // the word that lies around arguments and shared variables
  uint32_t parameter_offset[kMaxParameters];
  Extent extents[kMaxExtents];
  Region regions[kMaxExtents];
  char padding[40];  // structures such as a CUtensorMap are passed at multiples of 64
  unsigned char parameters[kMaxParameterBytes];
  char output[kOutputBytes];  // of printf
};

static_assert(offsetof(Launch, parameters) % 128 == 0, "");

// What one runner reports. Frames are offsets into the kernel library, innermost first.
struct Report {
  uint32_t fault, line;
  uint32_t n_frames, n_other_frames;
  uint64_t frames[kMaxFrames];
  uint64_t other_frames[1];  // the other access of a race
  uint32_t block[3], thread[3];
  uint64_t switches, blocks;
  char file[512];
  char message[1024];
};

struct Control {
  Launch launch;
  Report reports[kMaxRunners];
  char description[1 << 16];  // answer to a "describe" command
};

}  // namespace cudasim
