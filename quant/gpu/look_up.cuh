// Weights of four bits that are looked up in a table of 16 signed bytes: kValues0 .. 3 of a format's constants.
#pragma once
#include "ptx.cuh"

// The table entries, plus 128, of four nibbles, one in each byte.
template <class Format>
__device__ __forceinline__ unsigned look_up(unsigned nibbles) {
  constexpr unsigned kTop = 0x80808080u;
  constexpr unsigned kTable[4] = {Format::kValues0 ^ kTop, Format::kValues1 ^ kTop, Format::kValues2 ^ kTop,
                                  Format::kValues3 ^ kTop};
  // Side by side, they select a byte of either half of the table by their lower three bits; their
  // top bits then say which half it is: byte i of the first (selector i) or of the second (4 + i).
  nibbles = (nibbles | nibbles >> 4) & 0x00ff00ffu;
  nibbles = (nibbles | nibbles >> 8) & 0x0000ffffu;
  const unsigned selectors = nibbles & 0x7777u, which = (nibbles >> 1 & 0x4444u) | 0x3210u;
  return ptx::permute(ptx::permute(kTable[0], kTable[1], selectors),
                      ptx::permute(kTable[2], kTable[3], selectors), which);
}

// The table entries of the lower four nibbles, in their order. `low`: the nibbles without their top bits,
// which stand in `which` as bit 2 of byte numbers 3, 2, 1, 0.
template <class Format>
__device__ __forceinline__ unsigned look_up_low(unsigned low, unsigned which) {
  const unsigned first = ptx::permute(ptx::kept(Format::kValues0), Format::kValues1, low);
  const unsigned second = ptx::permute(ptx::kept(Format::kValues2), Format::kValues3, low);
  return ptx::permute(first, second, which);
}

// 32 weights from 16 bytes, in the order of their nibbles: 0, 16, 1, 17, ...
template <class Format>
__device__ __forceinline__ void look_up_32(const unsigned (&q)[4], unsigned (&w)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned which = (q[i] >> 1 & ptx::kept(0x44444444u)) | 0x32103210u;
    const unsigned low = q[i] & 0x77777777u;
    w[2 * i] = look_up_low<Format>(low, which);
    w[2 * i + 1] = look_up_low<Format>(low >> 16, which >> 16);
  }
}

// The same as sums of two. Byte numbers whose top bit is set give a sign instead: -1 from the table's lower
// half, which is negative, 0 from the upper half. So an entry of the lower half is itself and 0, one of the
// upper half -1 and itself plus 1, and nothing has to choose between the halves.
template <class Format>
__device__ __forceinline__ void look_up_32_terms(const unsigned (&q)[4], unsigned (&w)[16]) {
  constexpr unsigned kOne = 0x01010101u;
  const unsigned lower[2] = {ptx::kept(Format::kValues0), Format::kValues1};
  const unsigned upper[2] = {ptx::kept(Format::kValues2 + kOne), Format::kValues3 + kOne};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned nibbles = q[i], other = nibbles ^ 0x88888888u;
    w[4 * i] = ptx::permute_or_sign(lower[0], lower[1], nibbles);
    w[4 * i + 1] = ptx::permute_or_sign(upper[0], upper[1], other);
    w[4 * i + 2] = ptx::permute_or_sign(lower[0], lower[1], nibbles >> 16);
    w[4 * i + 3] = ptx::permute_or_sign(upper[0], upper[1], other >> 16);
  }
}
