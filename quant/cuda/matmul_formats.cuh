// What block formats look like to the kernels of quant.matmul.
//
// A lane takes a unit of a block at a time: kRuns runs of kRun weights with one factor each, a whole
// number. A format is a struct with
//   kBlockWeights, kBlockBytes, kUnits (of a block), kRuns, kRun
//   kInterleaved            the 32 weights of a block come in the order 0, 16, 1, 17, ..., and x too
//   kMinima                 weight = d * factor * q - dmin * minimum
//   Raw load(block, unit)   what a unit needs; the block: a Place in shared memory
//   start(unit, run)        the first weight of a run in its block
//   words(raw, run, w)      its weights q as signed bytes
//   factor(raw, run)        only where kRuns > 1 (else it is 1)
//   kFoldOffset             not negative: bytes hold q * factor - kFoldOffset, as folded_words gives them
//   raw.d, raw.dmin
// and with minima, of which sums of x in 16s are multiplied (see matmul_x.cu for their order)
//   sums_word(unit, i)      which two of the words with a pair of sums belong to a unit
//   dot_minima(raw, sums)   their product with the unit's minima
//   minima_word(raw, i)     the two minima that meet pair i
//   run_minimum(raw, run)
#pragma once
#include "matmul_call.cuh"

struct Blocks32 {
  static constexpr int kBlockWeights = 32, kUnits = 1, kRuns = 1, kRun = 32, kFoldOffset = -1;
  static constexpr bool kMinima = false;
  static __device__ __forceinline__ int start(int, int) { return 0; }
};

struct Blocks256 {
  static constexpr int kBlockWeights = 256, kUnits = 4, kFoldOffset = -1;
  static constexpr bool kInterleaved = false, kMinima = false;
};

// Two bits at one place in 32 bytes belong to 32 consecutive weights; a unit has 16 of the bytes.
struct Blocks256x16 : Blocks256 {
  static constexpr int kRuns = 4, kRun = 16;
  static __device__ __forceinline__ int start(int unit, int run) {
    return 128 * (unit / 2) + 32 * run + 16 * (unit % 2);
  }
  // Of eight bytes the scales of a unit's runs: a selector for __byte_perm.
  static __device__ __forceinline__ unsigned every_second(int unit) {
    return unit % 2 ? 0x7531 : 0x6420;
  }
};

template <class Format>
__device__ __forceinline__ int factor_of(const typename Format::Raw& raw, int run) {
  if constexpr (Format::kRuns > 1) return Format::factor(raw, run);
  return 1;
}
