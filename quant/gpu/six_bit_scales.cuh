// The scales and minima of Q4_K and Q5_K, of six bits, in 12 bytes. Those of the first four sub-blocks lie whole
// in bytes 0-3 and 4-7; of the others, four bits in a nibble of bytes 8-11 and the upper two in the bytes of the
// first four.
#pragma once

// Of sub-block `sub_block`; `head`: d and dmin, then the 12 bytes.
__device__ __forceinline__ void six_bit_scale_and_minimum(const unsigned (&head)[4], int sub_block, unsigned& scale,
                                                          unsigned& minimum) {
  const int shift = sub_block % 4 * 8;
  const unsigned first = head[1] >> shift, second = head[2] >> shift, third = head[3] >> shift;
  const bool whole = sub_block < 4;
  scale = whole ? first & 63 : (third & 15) | (first >> 2 & 48);
  minimum = whole ? second & 63 : (third >> 4 & 15) | (second >> 2 & 48);
}

// Of the two sub-blocks of unit `unit`, in the lower two bytes.
__device__ __forceinline__ void six_bit_scales_and_minima(const unsigned (&head)[4], int unit, unsigned& scales,
                                                          unsigned& minima) {
  const int shift = 16 * (unit % 2);
  const unsigned first = head[1] >> shift, second = head[2] >> shift, third = head[3] >> shift;
  scales = unit < 2 ? first & 0x3f3fu : (third & 0x0f0fu) | (first >> 2 & 0x3030u);
  minima = unit < 2 ? second & 0x3f3fu : (third >> 4 & 0x0f0fu) | (second >> 2 & 0x3030u);
}
