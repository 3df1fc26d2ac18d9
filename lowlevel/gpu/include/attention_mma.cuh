// Pieces of the fused attention kernels: 16-bit tiles in shared memory, and products of fragments.
//
// Tiles are rows of 16-byte chunks; chunk c of row r lies at c ^ (r % 8), so that the eight rows that
// ldmatrix reads at a time, and the chunks that eight threads write at a time, meet all 32 banks.
#pragma once

#include "float_types.cuh"
#include "ptx.cuh"

typedef unsigned short Element;  // the bits of a 16-bit float
constexpr int kThreads = WARPS * 32;
constexpr int kChunk = 8;  // values in 16 bytes

// What the two 16-bit types do in their own way.
template <class Type>
struct Arithmetic;

template <>
struct Arithmetic<Bfloat16> {
  static constexpr unsigned kExponent = 0x7f80u, kOne = 0x3f80u;  // bits of one value
  static __device__ __forceinline__ unsigned pack(float low, float high) { return floats::to_bfloats(low, high); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    ptx::mma_m16n8k16_bf16(d, a, b0, b1);
  }
};

template <>
struct Arithmetic<Float16> {
  static constexpr unsigned kExponent = 0x7c00u, kOne = 0x3c00u;
  static __device__ __forceinline__ unsigned pack(float low, float high) { return floats::to_halves(low, high); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    ptx::mma_m16n8k16_f16(d, a, b0, b1);
  }
};

// What two weights add to their row's denominator. bfloat16's as they are multiplied, rounded: where many
// keys weigh the same, so does the rounding, by up to 2**-9 of the result. float16's eighth of that is
// let be: undoing it cost 4 % (H100, 192/128).
template <class Type>
__device__ __forceinline__ float sum_of_pair(float low, float high, unsigned pair);
template <>
__device__ __forceinline__ float sum_of_pair<Bfloat16>(float, float, unsigned pair) {
  return Bfloat16::widen((Element)pair) + Bfloat16::widen((Element)(pair >> 16));
}
template <>
__device__ __forceinline__ float sum_of_pair<Float16>(float low, float high, unsigned) {
  return low + high;
}

// Where chunk `chunk` of row `row` starts in a tile with `row_chunks` chunks a row.
__device__ __forceinline__ int tile_offset(int row, int chunk, int row_chunks) {
  return (row * row_chunks + (chunk ^ (row & 7))) * kChunk;
}

__device__ __forceinline__ void copy_chunk(Element* target, const Element* source, bool exists, bool aligned) {
  if (aligned) {
    ptx::cp_async_16_zfill(target, source, exists ? 16 : 0);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kChunk; ++i) target[i] = exists ? source[i] : Element(0);
}

// Where a row of a tile comes from; one that does not exist is zeros.
struct SourceRow {
  const Element* address;
  bool exists;
};

// Starts copying a tile, or with `aligned` false copies it; `source_row(row)` is a SourceRow. A thread
// copies the chunks that `any_not_finite` makes it check. For tiles that `load_whole_tile` does not take;
// kept short, not fast.
template <int ROWS, int CHUNKS, class RowSource>
__device__ __forceinline__ void load_tile(Element* tile, bool aligned, RowSource source_row) {
  static_assert(kThreads / 8 % 8 == 0 && ROWS % (kThreads / 8) == 0 && CHUNKS % 8 == 0, "whole passes");
#pragma unroll 1
  for (int row = threadIdx.x / 8; row < ROWS; row += kThreads / 8) {
    const SourceRow source = source_row(row);
#pragma unroll 1
    for (int chunk = threadIdx.x % 8; chunk < CHUNKS; chunk += 8)
      copy_chunk(tile + tile_offset(row, chunk, CHUNKS), source.address + chunk * kChunk, source.exists, aligned);
  }
}

// Where `load_whole_tile` puts this thread's first chunk, and where it reads it in rows `stride` apart.
template <int CHUNKS>
__device__ __forceinline__ ptx::SharedPlace copy_place(Element* tile) {
  const int offset = tile_offset(threadIdx.x / 8, threadIdx.x % 8, CHUNKS);
  return ptx::shared_place(reinterpret_cast<unsigned char*>(tile + offset));
}

__device__ __forceinline__ const Element* copy_source(const Element* rows, long long stride) {
  return rows + threadIdx.x / 8 * stride + threadIdx.x % 8 * kChunk;
}

// As load_tile, where all rows exist, `stride` elements apart, and start at multiples of 16 bytes: no more
// than the copies, at constant distances from the thread's first (8 divides the rows of a pass, so the
// chunks of all passes are exchanged alike).
template <int ROWS, int CHUNKS>
__device__ __forceinline__ void load_whole_tile(ptx::SharedPlace place, const Element* source, long long stride) {
#pragma unroll
  for (int row = 0; row < ROWS; row += kThreads / 8) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk += 8)
      ptx::cp_async_16(place + (row * CHUNKS + chunk) * 16, source + chunk * kChunk);
    source += kThreads / 8 * stride;
  }
}

template <class Type>
__device__ __forceinline__ bool not_finite(unsigned bits) {
  return (bits & Arithmetic<Type>::kExponent) == Arithmetic<Type>::kExponent;
}

// Whether the chunks that this thread copied hold NaN or inf in columns [first, first + n) * 8.
template <class Type, int ROWS, int CHUNKS>
__device__ __forceinline__ bool any_not_finite(const Element* tile, int first, int n) {
  bool found = false;
  const int column = threadIdx.x % 8;
  for (int row = threadIdx.x / 8; row < ROWS; row += kThreads / 8)
    for (int chunk = column; chunk < CHUNKS; chunk += 8) {
      if (chunk < first || chunk >= first + n) continue;
      const uint4 values = *reinterpret_cast<const uint4*>(tile + tile_offset(row, chunk, CHUNKS));
      const unsigned words[4] = {values.x, values.y, values.z, values.w};
      for (int i = 0; i < 4; ++i) found |= not_finite<Type>(words[i]) || not_finite<Type>(words[i] >> 16);
    }
  return found;
}

// ---- fragments; lanes as ptx.cuh says ----------------------------------------------------------------
// A lane keeps one address a tile: that of its row, and of its chunk, in the fragments of row 0 and column
// 0. `chunk` further, an even number, is the same address with bits turned over, since tiles start at
// multiples of 128 bytes; 8 rows further it is a constant further.
template <int CHUNKS>
__device__ __forceinline__ ptx::SharedPlace place_of_chunk(const Element* tile, int row, int chunk) {
  Element* const at = const_cast<Element*>(tile) + tile_offset(row, chunk, CHUNKS);
  return ptx::shared_place(reinterpret_cast<unsigned char*>(at));
}

template <int CHUNKS>
__device__ __forceinline__ ptx::SharedPlace moved(ptx::SharedPlace place, int rows, int chunk) {
  return ptx::flipped(place, chunk % 8 * 16) + (rows * CHUNKS + chunk / 8 * 8) * 16;
}

// A: 16 rows by 16 columns.
template <int CHUNKS>
__device__ __forceinline__ ptx::SharedPlace place_of_a(const Element* tile, int row) {
  const int lane = threadIdx.x % 32;
  return place_of_chunk<CHUNKS>(tile, row + lane % 16, lane / 16);
}
template <int CHUNKS>
__device__ __forceinline__ void load_a(unsigned (&a)[4], ptx::SharedPlace place, int row, int column_16) {
  ptx::ldmatrix_x4(a, moved<CHUNKS>(place, row, column_16 * 2));
}

// B of a product with the rows' transpose: 16 rows (b[0], b[1]: the first 8) by 16 columns (depth).
template <int CHUNKS>
__device__ __forceinline__ ptx::SharedPlace place_of_b_rows(const Element* tile, int row) {
  const int lane = threadIdx.x % 32;
  return place_of_chunk<CHUNKS>(tile, row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
}
template <int CHUNKS>
__device__ __forceinline__ void load_b_of_rows(unsigned (&b)[4], ptx::SharedPlace place, int row, int column_16) {
  ptx::ldmatrix_x4(b, moved<CHUNKS>(place, row, column_16 * 2));
}

// B of a product with the rows as they are: 16 rows (depth) by 16 columns (b[0], b[1]: the first 8)
// starting at chunk `chunk`.
template <int CHUNKS>
__device__ __forceinline__ ptx::SharedPlace place_of_b(const Element* tile, int chunk) {
  const int lane = threadIdx.x % 32;
  return place_of_chunk<CHUNKS>(tile, lane % 16, chunk + lane / 16);
}
template <int CHUNKS>
__device__ __forceinline__ void load_b(unsigned (&b)[4], ptx::SharedPlace place, int row, int chunk) {
  ptx::ldmatrix_x4_trans(b, moved<CHUNKS>(place, row, chunk));
}

// ---- weights times V where a weight of 0 times NaN or inf must be 0 ----------------------------------
// V is taken as three parts: its finite values, ones where it holds +inf or NaN, ones where it holds
// -inf or NaN. A sum over ones that is above 0 says that a kept key met such a value.
enum {
  kFinite,
  kUp,
  kDown,
  kParts
};

template <class Type>
__device__ __forceinline__ unsigned part_of_pair(unsigned pair, int part) {
  unsigned result = 0;
#pragma unroll
  for (int shift = 0; shift < 32; shift += 16) {
    const unsigned bits = pair >> shift & 0xffffu;
    const bool is_nan = (bits & 0x7fffu) > Arithmetic<Type>::kExponent, negative = bits >> 15;
    const bool met = not_finite<Type>(bits) && (is_nan || negative == (part == kDown));
    const unsigned finite = not_finite<Type>(bits) ? 0 : bits, one = met ? Arithmetic<Type>::kOne : 0;
    const unsigned chosen = part == kFinite ? finite : one;
    result |= chosen << shift;
  }
  return result;
}

__device__ __forceinline__ void add_part(float (&sums)[4], const float (&products)[4], int part) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float met = products[i] > 0.0f ? (part == kUp ? infinity() : -infinity()) : 0.0f;
    sums[i] += part == kFinite ? products[i] : met;
  }
}

// sums += weights V; `load_b(b, key, chunk)` gives V's fragments B: 16 keys, 16 columns from chunk `chunk` on.
// Slow, but only met beside keys that are left out.
template <class Type, int M, int N, int K, class LoadB>
__device__ __forceinline__ void add_values_carefully(float (&sums)[M][N][4], const unsigned (&weights)[K][M][4],
                                                     LoadB load_b) {
#pragma unroll
  for (int n = 0; n < N; n += 2)
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
      float products[M][2][4] = {};
#pragma unroll
      for (int keys = 0; keys < K; ++keys) {
        unsigned b[4];
        load_b(b, keys * 16, n);
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = part_of_pair<Type>(b[i], part);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          Arithmetic<Type>::multiply(products[m][0], weights[keys][m], b[0], b[1]);
          Arithmetic<Type>::multiply(products[m][1], weights[keys][m], b[2], b[3]);
        }
      }
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int j = 0; j < 2; ++j) add_part(sums[m][n + j], products[m][j], part);
    }
}

// ---- rows across the four lanes that share them -----------------------------------------------------
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <class Type>
__device__ __forceinline__ void store_out(void* out, bool is_float32, long long index, float value) {
  if (is_float32)
    static_cast<float*>(out)[index] = value;
  else
    static_cast<Element*>(out)[index] = Type::narrow(value);
}
