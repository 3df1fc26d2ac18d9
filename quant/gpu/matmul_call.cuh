// What the kernels of quant.matmul share: a call's sizes, groups of rows of x, and how rows of blocks
// come into shared memory.
#pragma once
#include "float_types.cuh"
#include "ptx.cuh"

struct MatmulCall {  // matmul.py's CALL
  long long expert_stride, out_stride;  // bytes, floats
  int row_stride, row_bytes;
  int n_rows, columns, n_slots, n_groups;
  int x_columns;  // floats from one prepared row of x to the next
  int pieces;     // see copies_pieces
  int counted;    // above 0: n_groups is the most there may be, groups[3 * n_groups] how many there are; below: groups are
                  // the ids of so many matrices, see matmul_stream.cuh
  int x_type, out_type;  // FloatType
  int image_slots;  // rows of x in the image that tile_rows makes
  int row_lanes, unused;  // below 32: what counts as a row is 32 / row_lanes short ones, see matmul_stream.cuh
};

// matmul.py's FLOAT_TYPES.
enum FloatType {
  kFloat32,
  kFloat16,
  kBfloat16
};

__device__ __forceinline__ float widen_bits(unsigned bits, int type) {
  return type == kFloat16 ? Float16::widen((unsigned short)bits) : Bfloat16::widen((unsigned short)bits);
}
// Row `row` of an array whose rows lie `stride` items apart.
__device__ __forceinline__ const void* typed_row(const void* array, long long row, long long stride, int type) {
  return static_cast<const unsigned char*>(array) + row * stride * (type == kFloat32 ? 4 : 2);
}

// A value of out, in its type.
__device__ __forceinline__ void store_out(void* __restrict__ out, long long index, float value, int type) {
  if (type == kFloat32) static_cast<float*>(out)[index] = value;
  else
    static_cast<unsigned short*>(out)[index] =
        type == kFloat16 ? Float16::narrow(value) : Bfloat16::narrow(value);
}

// Prepared rows of x (slots) that meet one matrix.
struct Group {
  long long expert;
  int first, count;
};

// Kernels that stream have no register for it: they go through groups without rows.
__device__ __forceinline__ int count_groups(const int* __restrict__ groups, const MatmulCall& call) {
  return call.counted ? __ldg(groups + 3 * (long long)call.n_groups) : call.n_groups;
}

// Without a table there is one matrix, and group g is slots g * width .. of all.
__device__ __forceinline__ Group read_group(const int* __restrict__ groups, const MatmulCall& call,
                                            int index, int width) {
  Group group;
  if (groups) {
    group.expert = __ldg(groups + 3 * (long long)index);
    group.first = __ldg(groups + 3 * (long long)index + 1);
    group.count = __ldg(groups + 3 * (long long)index + 2);
  } else {
    group.expert = 0, group.first = index * width;
    group.count = min(width, call.n_slots - group.first);
  }
  return group;
}

// The row of x and of out that a slot stands for.
__device__ __forceinline__ long long row_of_slot(const int* __restrict__ order, int slot) {
  return order ? __ldg(order + slot) : slot;
}

// Rows of x as a call finds them. With `rows`, row i of the product is that of x's row rows[i]; a product whose row x
// does not have becomes NaN.
struct RowsOfX {  // matmul/run.py's ROWS
  long long stride;  // items
  int type, n_rows, columns, unused;
};

// Whether x has the row that row `row` of the product asks for, which becomes that.
__device__ __forceinline__ bool find_row(const int* __restrict__ rows, const RowsOfX& of, long long& row) {
  if (!rows) return true;
  row = __ldg(rows + row);
  return (unsigned long long)row < (unsigned long long)of.n_rows;
}

// ---- rows of blocks into shared memory ------------------------------------------------------------
//
// Rows are copied in pieces of 16 bytes that start at multiples of 16 in global memory: a row's first
// byte then lies `skew` bytes behind the start of its place in shared memory. What the pieces bring
// of neighbouring rows is never used. Where that would read beside the tensor, or rows start at odd
// addresses, bytes are copied one by one and the skew is 0. Skews are even where blocks are.

// Whether a tile of a matrix's rows comes in pieces. call.pieces: 2 all tiles, 1 all but the first and
// the last of a matrix, 0 none.
__device__ __forceinline__ bool copies_pieces(const MatmulCall& call, int tile, int n_tiles) {
  return call.pieces == 2 || (call.pieces == 1 && tile > 0 && tile < n_tiles - 1);
}

__device__ __forceinline__ int skew_of(const unsigned char* row, bool whole) {
  return whole ? (int)(unsigned)(size_t)row & 15 : 0;
}

// One piece: 16 bytes from `from`, of which `left` belong to the row.
__device__ __forceinline__ void copy_piece(unsigned char* to, const unsigned char* from, int left, bool whole) {
  if (left <= 0) return;
  if (whole) {
    ptx::cp_async_16(to, from);
  } else {
#pragma unroll 1
    for (int i = 0; i < 16; ++i) to[i] = i < left ? __ldg(from + i) : 0;
  }
}

// ---- reading blocks in shared memory --------------------------------------------------------------

// A block in shared memory: `shift` bytes (0 or 2; of blocks at odd addresses up to 3) behind a multiple of 4,
// which is `offset` behind base. Only what is read at which of the two is known when kernels are compiled.
struct Place {
  static constexpr bool kKnown = false;
  const unsigned char* base;
  int offset, shift;
};

// The same where the shift is known too.
template <int kShift>
struct KnownPlace {
  static constexpr bool kKnown = true;
  static constexpr int shift = kShift;
  const unsigned char* base;
  int offset;
};

// Of what kAlignment says of a format's blocks, the bits of an address that are a shift.
template <int kAlignment>
constexpr int kShiftMask = kAlignment > 1 ? 2 : 3;

template <int kAlignment>
__device__ __forceinline__ Place place_at(const unsigned char* base, int offset) {
  return {base, offset & ~3, offset & kShiftMask<kAlignment>};
}

template <class P>
__device__ __forceinline__ unsigned word_at(const P& place, int offset) {
  return *reinterpret_cast<const unsigned*>(place.base + place.offset + offset);
}

// The 16 bits at an even byte of a block.
template <class P>
__device__ __forceinline__ unsigned read_half_word(const P& place, int byte) {
  return *reinterpret_cast<const unsigned short*>(place.base + place.offset + place.shift + byte);
}
template <class P>
__device__ __forceinline__ float read_half(const P& place, int byte) {
  return floats::from_half((unsigned short)read_half_word(place, byte));
}

// N words from byte `byte` on, a multiple of 4. At least two bytes of the block must follow.
template <int N, class P>
__device__ __forceinline__ void read_words(const P& place, int byte, unsigned (&words)[N]) {
  if constexpr (P::kKnown) {
    if (place.shift == 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) words[i] = word_at(place, byte + 4 * i);
      return;
    }
  }
  const unsigned selector = place.shift ? 0x5432 : 0x3210;
  unsigned part[N + 1];
#pragma unroll
  for (int i = 0; i <= N; ++i) part[i] = word_at(place, byte + 4 * i);
#pragma unroll
  for (int i = 0; i < N; ++i) words[i] = ptx::permute(part[i], part[i + 1], selector);
}

// The same where nothing may follow.
template <int N, class P>
__device__ __forceinline__ void read_last_words(const P& place, int byte, unsigned (&words)[N]) {
  if constexpr (P::kKnown) {
    if (place.shift == 0) return read_words(place, byte, words);
  }
  const unsigned selector = place.shift ? 0x5432 : 0x3210;
  unsigned part[N + 1];
#pragma unroll
  for (int i = 0; i < N; ++i) part[i] = word_at(place, byte + 4 * i);
  part[N] = 0;
  if (place.shift) part[N] = read_half_word(place, byte + 4 * N - 2);
#pragma unroll
  for (int i = 0; i < N; ++i) words[i] = ptx::permute(part[i], part[i + 1], selector);
}

// N words from byte `byte` on, two behind a multiple of 4.
template <int N, class P>
__device__ __forceinline__ void read_words_after_half(const P& place, int byte, unsigned (&words)[N]) {
  const unsigned selector = place.shift ? 0x7654 : 0x5432;
  unsigned part[N + 1];
#pragma unroll
  for (int i = 0; i <= N; ++i) part[i] = word_at(place, byte - 2 + 4 * i);
#pragma unroll
  for (int i = 0; i < N; ++i) words[i] = ptx::permute(part[i], part[i + 1], selector);
}

// A whole block: 16 bits, which are returned, and N words.
template <int N, class P>
__device__ __forceinline__ unsigned short read_half_and_words(const P& place, unsigned (&words)[N]) {
  const unsigned selector = place.shift ? 0x7654 : 0x5432;
  unsigned part[N + 1];
#pragma unroll
  for (int i = 0; i <= N; ++i) part[i] = word_at(place, 4 * i);
#pragma unroll
  for (int i = 0; i < N; ++i)
    words[i] = P::kKnown && place.shift ? part[i + 1] : ptx::permute(part[i], part[i + 1], selector);
  return (unsigned short)(place.shift ? part[0] >> 16 : part[0]);
}

__device__ __forceinline__ int signed_byte(unsigned word, int i) {
  return (signed char)(word >> (8 * i));
}
// Bytes less 8, 32 or any constant up to 128, as signed bytes; the bytes are less than 128.
template <int kOffset>
__device__ __forceinline__ unsigned less(unsigned bytes) {
  return (bytes + (0x80 - kOffset) * 0x01010101u) ^ 0x80808080u;
}
