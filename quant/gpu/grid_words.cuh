// Products with IQ1, IQ2 and IQ3 formats: signed bytes out of the entries of a table.
#pragma once
#include "even_signs.cuh"
#include "matmul_formats.cuh"

// Bits 0 to 3 as bytes, 0 or 1. The factor puts them at 0, 8, 16 and 24 too, and no two bits in one place.
__device__ __forceinline__ unsigned spread_bits(unsigned four) { return (four & 15) * 0x00204081u & 0x01010101u; }

// Four bytes of 1 to 127, those whose bit of `signs` (0 to 3) is set negated: nothing carries.
__device__ __forceinline__ unsigned with_signs(unsigned word, unsigned signs) {
  const unsigned minus = spread_bits(signs);
  return (word ^ minus * 255) + minus;
}

// Four weights of IQ1 formats in eighths: 8 x (-1, 0, 1) plus 1, or less 1 where `minus` is 1.
__device__ __forceinline__ unsigned in_eighths(unsigned word, unsigned minus) {
  const unsigned raised = (word ^ 0x80808080u) - 0x7f7f7f7fu;  // 0, 1, 2
  return (raised * 8 + 0x79797979u - minus * 0x02020202u) ^ 0x80808080u;
}
