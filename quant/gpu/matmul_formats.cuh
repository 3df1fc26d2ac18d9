// What block formats look like to the kernels of quant.matmul.
//
// A lane takes a unit of a block at a time: kRuns runs of kRun weights with one factor each, a whole
// number or (NVFP4) a float. A format is a struct with what constants.py makes of its row:
//   kBlockWeights, kBlockBytes, kUnits (of a block), kRuns, kRun
//   kInterleaved            the 32 weights of a block or run come in the order 0, 16, 1, 17, ..., and x too
//   kMinima                 weight = d * factor * q - dmin * minimum
//   kSums                   products need sums of the bytes of x
//   kFoldOffset             not negative: bytes hold q * factor - kFoldOffset, as folded_words gives them
//   kFewFrom                rows of x from which on there are registers for half the rows of weights
//   where its fields are
// and with
//   Raw load(block, unit)   what a unit needs; the block: a Place in shared memory
//   start(unit, run)        the first weight of a run in its block
//   words(raw, run, w)      its weights q as signed bytes
//   kTerms, terms(raw, run, w)   the same as sums of kTerms signed bytes, where that is less work than one
//   x_piece, x_neighbour    see below
//   factor(raw, run)        only where kRuns > 1 (else it is 1); a float where it is no whole number
//   folded_words(raw, run, w)   only with a kFoldOffset
//   raw.d, raw.dmin
// and with minima, of which sums of x in 16s are multiplied (see matmul_x.cu for their order)
//   sums_word(unit, i)      which two of the words with a pair of sums belong to a unit
//   dot_minima(raw, sums)   their product with the unit's minima
//   minima_word(raw, i)     the two minima that meet pair i, of super-blocks
//   run_minimum(raw, run)
// of blocks of 32 weights there is one pair of sums, and the minimum is 1: dmin is what all weights have less.
//
// The kernels that stream take rows in chunks of 32 times 64 weights, a lane 64 of them: a unit of a
// larger block, or two blocks of 32 weights. So that 32 lanes read 512 bytes of x in one piece, its bytes stand
// there chunk by chunk, in a chunk piece by piece (there are four), in a piece lane by lane 16 bytes: those
// that piece x_piece(unit, block, run, j) of lane `lane + x_neighbour(unit, j)` has are what bytes 16 j of a
// run are multiplied with; `block`, 0 or 1: which of the lane's two. In the last chunk some places are empty.
#pragma once
#include "matmul_call.cuh"

constexpr int kLaneWeights = 64, kChunkWeights = 32 * kLaneWeights;

// Where 16 bytes of x, at weight `first` of a row, stand in that order.
template <int kBlockWeights>
__device__ __forceinline__ int streamed_place(int first) {
  int lane = first % kChunkWeights / kLaneWeights, piece = first % kLaneWeights / 16;
  if (kBlockWeights == 256) {  // as Blocks256x16 has them
    const int in_half = first % 128;
    lane = first % kChunkWeights / 128 * 2 + in_half % 32 / 16, piece = in_half / 32;
  }
  return first / kChunkWeights * kChunkWeights + (piece * 32 + lane) * 16;
}

// Bytes from one row of x in that order to the next.
__device__ __forceinline__ int streamed_pitch(int columns) {
  return (columns + kChunkWeights - 1) / kChunkWeights * kChunkWeights;
}

template <class Constants>
struct Blocks32 : Constants {
  static constexpr int kTerms = 1;
  static __device__ __forceinline__ int start(int, int) { return 0; }
  static __device__ __forceinline__ int x_piece(int, int block, int, int j) { return 2 * block + j; }
  static __device__ __forceinline__ int x_neighbour(int, int) { return 0; }
};

template <class Constants>
struct Blocks32WithMinimum : Blocks32<Constants> {
  static __device__ __forceinline__ int sums_word(int, int) { return 0; }
  template <class Raw>
  static __device__ __forceinline__ int dot_minima(const Raw&, const int (&sums)[2]) {
    return (short)sums[0] + (sums[0] >> 16);
  }
  template <class Raw>
  static __device__ __forceinline__ int run_minimum(const Raw&, int) {
    return 1;
  }
};

// Blocks of 64 or 128: a unit is 64 weights, four runs one after the other.
template <class Constants>
struct Blocks64x16 : Constants {
  static constexpr int kTerms = 1;
  static __device__ __forceinline__ int start(int unit, int run) { return 64 * unit + 16 * run; }
  static __device__ __forceinline__ int x_piece(int, int, int run, int) { return run; }
  static __device__ __forceinline__ int x_neighbour(int, int) { return 0; }
};

// Two bits at one place in 32 bytes belong to 32 consecutive weights; a unit has 16 of the bytes.
template <class Constants>
struct Blocks256x16 : Constants {
  static constexpr int kTerms = 1;
  static __device__ __forceinline__ int start(int unit, int run) {
    return 128 * (unit / 2) + 32 * run + 16 * (unit % 2);
  }
  static __device__ __forceinline__ int x_piece(int, int, int run, int) { return run; }
  static __device__ __forceinline__ int x_neighbour(int, int) { return 0; }
  // Of eight bytes the scales of a unit's runs: a selector for __byte_perm.
  static __device__ __forceinline__ unsigned every_second(int unit) {
    return unit % 2 ? 0x7531 : 0x6420;
  }
};

// A unit is two sub-blocks of 32, one after the other.
template <class Constants>
struct Blocks256x32 : Constants {
  static constexpr int kTerms = 1;
  static __device__ __forceinline__ int start(int unit, int run) { return 64 * unit + 32 * run; }
  static __device__ __forceinline__ int x_piece(int unit, int, int run, int) { return 2 * (unit % 2) + run; }
  static __device__ __forceinline__ int x_neighbour(int unit, int j) { return j - unit % 2; }
};

// Each with a minimum, in the lower two bytes of raw.minima.
template <class Constants>
struct Blocks256x32WithMinima : Blocks256x32<Constants> {
  // Sums of 16 come in pairs (first halves of both runs), (second halves).
  static __device__ __forceinline__ int sums_word(int unit, int i) {
    return 4 * (unit / 2) + unit % 2 + 2 * i;
  }
  template <class Raw>
  static __device__ __forceinline__ int dot_minima(const Raw& raw, const int (&sums)[2]) {
    return __dp2a_lo(sums[1], (int)raw.minima, __dp2a_lo(sums[0], (int)raw.minima, 0));
  }
  template <class Raw>
  static __device__ __forceinline__ unsigned minima_word(const Raw& raw, int) {
    return raw.minima;
  }
  template <class Raw>
  static __device__ __forceinline__ unsigned run_minimum(const Raw& raw, int run) {
    return raw.minima >> (8 * run) & 0xff;
  }
};

template <class Format>
__device__ __forceinline__ auto factor_of(const typename Format::Raw& raw, int run) {
  if constexpr (Format::kRuns > 1) return Format::factor(raw, run);
  else return 1;
}

// Of blocks with one scale: runs are pieces of them, and their products are the weights.
template <class Base>
struct OneScale : Base {
  template <class Raw>
  static __device__ __forceinline__ int factor(const Raw&, int) {
    return 1;
  }
};
