// A row of x as signed bytes.
#pragma once
#include "matmul_formats.cuh"

// Eight values from item `index` of a row on, which may lie at any address.
__device__ __forceinline__ void load_8(const void* __restrict__ row, long long index, int type,
                                       float (&values)[8]) {
  if (type == kFloat32) {
    const float* const from = static_cast<const float*>(row) + index;
    if (((size_t)from & 15) == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(from) + i);
        values[4 * i] = four.x, values[4 * i + 1] = four.y;
        values[4 * i + 2] = four.z, values[4 * i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = __ldg(from + i);
    }
    return;
  }
  const unsigned short* const from = static_cast<const unsigned short*>(row) + index;
  unsigned words[4];
  if (((size_t)from & 15) == 0) {
    const uint4 eight = __ldg(reinterpret_cast<const uint4*>(from));
    words[0] = eight.x, words[1] = eight.y, words[2] = eight.z, words[3] = eight.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = __ldg(from + 2 * i) | (unsigned)__ldg(from + 2 * i + 1) << 16;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = widen_bits(words[i / 2] >> (16 * (i % 2)) & 0xffff, type);
}

// A lane's values of a part; zeros behind the row.
__device__ __forceinline__ void load_part(const void* __restrict__ row, int type, int part, int columns,
                                          float (&values)[8]) {
  const int first = part * 256 + threadIdx.x % 32 * 8;
  if (first < columns) {
    load_8(row, first, type, values);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = 0.0f;
  }
}

// Each kBlock values become bytes round(value / scale), scale = largest / 127, as on the CPU: a scale of
// 0 where all are below 2**-100, of NaN where one is not finite. A warp makes part `part` of 256 values
// of a row of `columns`, a lane 8 of them, `values`; bytes, scales and sums are the row's.
//
// kSums: also the sums of the bytes in 16s, two 16-bit numbers a word, of 256 values in the order in which
// kernels need them: sum 8h + 2p + q (q < 2, p < 4) stands at 8h + 4q + p.
// kInterleaved: the 32 values of a block in the order 0, 16, 1, 17, ...
// kStreamed: bytes in the order of matmul_formats.cuh.
template <int kBlock, bool kInterleaved, bool kSums, bool kStreamed>
__device__ __forceinline__ void quantise_part(const float (&values)[8], int part, int columns,
                                              unsigned char* bytes, float* scales, short* sums) {
  constexpr int kLanes = kBlock / 8;
  const int lane = threadIdx.x % 32, first = part * 256 + lane * 8;
  const bool active = first < columns;
  float largest = 0.0f, check = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    largest = fmaxf(largest, fabsf(values[i]));
    check += values[i] - values[i];  // NaN from NaN and infinities
  }
#pragma unroll
  for (int i = 1; i < kLanes; i *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, i));
    check += __shfl_xor_sync(0xffffffffu, check, i);
  }
  largest += check;
  float scale = 0.0f, inverse = 0.0f;
  if (!(largest < 7.8886090522101181e-31f)) {  // 2**-100
    scale = __fdiv_rn(largest, 127.0f);
    inverse = __fdiv_rn(1.0f, scale);
  }
  int rounded[8], sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    rounded[i] = check == check ? (int)rintf(__fmul_rn(values[i], inverse)) : 0;
    sum += rounded[i];
  }
  unsigned words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    words[i] = (rounded[4 * i] & 255) | (rounded[4 * i + 1] & 255) << 8 |
               (rounded[4 * i + 2] & 255) << 16 | (unsigned)rounded[4 * i + 3] << 24;
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  int at = first;
  if constexpr (kInterleaved) {
    // Lanes 0 and 2 of a block's four share its first 16 bytes, lanes 1 and 3 the others.
    const bool upper = lane & 2;
    const unsigned given = upper ? words[0] : words[1];
    const unsigned taken = __shfl_xor_sync(0xffffffffu, given, 2);
    const unsigned low = upper ? taken : words[0], high = upper ? words[1] : taken;
    words[0] = __byte_perm(low, high, 0x5140), words[1] = __byte_perm(low, high, 0x7362);
    at = part * 256 + lane / 4 * 32 + lane % 2 * 16 + (upper ? 8 : 0);
  }
  if (!active) return;
  if constexpr (kStreamed) at = streamed_place<kBlock>(at / 16 * 16) + at % 16;
  *reinterpret_cast<uint2*>(bytes + at) = make_uint2(words[0], words[1]);
  if (lane % kLanes == 0) scales[first / kBlock] = scale;
  if (kSums && lane % 2 == 0) {
    const int index = lane / 2;
    const int place = kBlock == 256 ? index / 8 * 8 + index % 2 * 4 + index % 8 / 2 : index;
    sums[part * 16 + place] = (short)sum;
  }
}
