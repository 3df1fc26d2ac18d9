// What the dequantising kernels of all block formats share.
//
// A format is a struct with
//   kBlockWeights, kBlockBytes, and where its fields are: see constants.py
//   kAlignment       what its blocks are aligned to in an aligned tensor: a power of two up to 16
//   decode<kVector>(block, index, weights)
//                    weights index to index + kVector - 1 of a block; index is a multiple of kVector,
//                    block the `Bytes` it is read from
// kVector weights are what one 16-byte store takes: 4 in float32, 8 in 16 bits.
#pragma once
#include "float_types.cuh"
#include "ptx.cuh"

// ---- a block's bytes -------------------------------------------------------------------------------

// Bytes in shared memory from an address that is a multiple of kAlignment on.
template <int kAlignment>
struct Bytes {
  const unsigned char* first;

  template <class T>
  __device__ __forceinline__ T load(int offset) const {
    return *reinterpret_cast<const T*>(first + offset);
  }
  __device__ __forceinline__ unsigned byte(int offset) const { return first[offset]; }
  __device__ __forceinline__ float half(int offset) const {
    return floats::from_half(load<unsigned short>(offset));
  }

  // N 32-bit words from an offset that is a multiple of kMultiple, in loads as wide as may be.
  template <int kMultiple, int N>
  __device__ __forceinline__ void words(int offset, unsigned (&words)[N]) const {
    constexpr int kWidth = kMultiple < kAlignment ? kMultiple : kAlignment;
    if constexpr (kWidth == 1) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        words[i] = byte(offset + 4 * i) | byte(offset + 4 * i + 1) << 8 | byte(offset + 4 * i + 2) << 16 |
                   byte(offset + 4 * i + 3) << 24;
    } else if constexpr (kWidth >= 16 && N % 4 == 0) {
#pragma unroll
      for (int i = 0; i < N / 4; ++i) {
        const uint4 four = load<uint4>(offset + 16 * i);
        words[4 * i] = four.x, words[4 * i + 1] = four.y;
        words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
      }
    } else if constexpr (kWidth >= 8 && N % 2 == 0) {
#pragma unroll
      for (int i = 0; i < N / 2; ++i) {
        const uint2 two = load<uint2>(offset + 8 * i);
        words[2 * i] = two.x, words[2 * i + 1] = two.y;
      }
    } else if constexpr (kWidth >= 4) {
#pragma unroll
      for (int i = 0; i < N; ++i) words[i] = load<unsigned>(offset + 4 * i);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i)
        words[i] = load<unsigned short>(offset + 4 * i) |
                   (unsigned)load<unsigned short>(offset + 4 * i + 2) << 16;
    }
  }
};

// ---- codes -----------------------------------------------------------------------------------------

// Byte i of a word, plus an integer offset: exact. The byte in the last bits of 2**23 is a float32
// without a conversion, which the device does at a fraction of the rate.
__device__ __forceinline__ float byte_plus(unsigned word, int i, float offset) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i)) + (offset - 8388608.0f);
}

// weights[i] = factor * (byte i + offset), rounded once.
template <int kVector>
__device__ __forceinline__ void scale_bytes(const unsigned (&codes)[kVector / 4], float offset,
                                            float factor, float (&weights)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    weights[i] = __fmul_rn(byte_plus(codes[i / 4], i % 4, offset), factor);
}

// weights[i] = factor * byte i - minimum. The product must be exact: one rounding in all.
template <int kVector>
__device__ __forceinline__ void scale_bytes_less(const unsigned (&codes)[kVector / 4], float factor,
                                                 float minimum, float (&weights)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    weights[i] = __fmaf_rn(byte_plus(codes[i / 4], i % 4, 0.0f), factor, -minimum);
}

// ---- the kernel ------------------------------------------------------------------------------------

// Writes kVector weights: one store of 16 bytes, or value by value where the address may not allow it.
template <class Out, bool kAligned>
__device__ __forceinline__ void store_vector(typename Out::Bits* out,
                                             const float (&weights)[Out::kVector]) {
  if constexpr (kAligned) {
    ptx::store_16(out, Out::pack(weights));
  } else {
#pragma unroll
    for (int i = 0; i < Out::kVector; ++i) out[i] = Out::narrow(weights[i]);
  }
}

constexpr int kTileThreads = 256;  // of a thread block
// Vectors that a thread makes: more of them share the work of finding the tile.
constexpr int kTileVectors = 8;

// The blocks that a thread block decodes: `rows` times `columns` of them, in shared memory. Each row's
// bytes have a pitch of their own there; aligned ones lie as in the tensor, modulo 16.
template <class Format, class Out, bool kAligned>
struct Tile {
  static constexpr int kBlocks = kTileThreads * kTileVectors * Out::kVector / Format::kBlockWeights;
  // The worst case is one block a row, with up to 15 bytes before it and after it.
  static constexpr int kSharedBytes = kBlocks * ((Format::kBlockBytes + 30) / 16 * 16);
  static_assert(Format::kBlockBytes >= 16, "16 bytes reach at most one block further");

  const unsigned char* source;  // of the first block
  long long source_stride;      // of rows
  typename Out::Bits* out;
  long long out_stride;
  unsigned rows, columns, pitch;
  bool starts_row, ends_row;

  __device__ __forceinline__ unsigned skew(unsigned row) const {
    if (!kAligned) return 0;
    return (unsigned)(reinterpret_cast<unsigned long long>(source + row * source_stride) % 16);
  }

  // In whole 16 bytes, but for those across an end of the tensor's row: there, two bytes at a time or one.
  __device__ __forceinline__ void stage(unsigned char* shared) const {
    const int n_bytes = (int)columns * Format::kBlockBytes;
    const unsigned chunks = pitch / 16;
    for (unsigned i = threadIdx.x; i < rows * chunks; i += kTileThreads) {
      const unsigned row = rows > 1 ? i / chunks : 0, chunk = i - row * chunks;
      const unsigned char* const from = source + row * source_stride;
      const int at = 16 * (int)chunk - (int)skew(row);
      if ((at >= 0 || !starts_row) && (at + 16 <= n_bytes || (!ends_row && at < n_bytes))) {
        *reinterpret_cast<uint4*>(shared + 16 * i) =
            __ldg(reinterpret_cast<const uint4*>(from + at));
      } else if constexpr (Format::kAlignment == 1) {
#pragma unroll 1
        for (int byte = max(at, 0); byte < min(at + 16, n_bytes); ++byte)
          shared[16 * i + (byte - at)] = __ldg(from + byte);
      } else if constexpr (Format::kAlignment < 16) {
#pragma unroll 1
        for (int byte = max(at, 0); byte < min(at + 16, n_bytes); byte += 2)
          *reinterpret_cast<unsigned short*>(shared + 16 * i + (byte - at)) =
              __ldg(reinterpret_cast<const unsigned short*>(from + byte));
      }
    }
  }

  // From any address, to multiples of 16.
  __device__ __forceinline__ void stage_bytes(unsigned char* shared) const {
    const unsigned n_bytes = columns * Format::kBlockBytes;
    for (unsigned i = threadIdx.x; i < rows * n_bytes; i += kTileThreads) {
      const unsigned row = rows > 1 ? i / n_bytes : 0, byte = i - row * n_bytes;
      shared[pitch * row + byte] = __ldg(source + row * source_stride + byte);
    }
  }

  __device__ __forceinline__ void decode(const unsigned char* row_bytes, unsigned column,
                                         unsigned index, typename Out::Bits* to) const {
    const Bytes<Format::kAlignment> bytes = {row_bytes + column * Format::kBlockBytes};
    float weights[Out::kVector];
    Format::template decode<Out::kVector>(bytes, (int)index, weights);
    store_vector<Out, kAligned>(to, weights);
  }

  // Neighbouring threads write side by side.
  __device__ __forceinline__ void decode_row(const unsigned char* shared) const {
    shared += skew(0);
#pragma unroll
    for (int i = 0; i < kTileVectors; ++i) {
      const unsigned weight = (i * kTileThreads + threadIdx.x) * Out::kVector;
      const unsigned column = weight / Format::kBlockWeights;
      if (column < columns) decode(shared, column, weight % Format::kBlockWeights, out + weight);
    }
  }
  __device__ __forceinline__ void decode_rows(const unsigned char* shared) const {
    for (unsigned i = threadIdx.x;; i += kTileThreads) {
      const unsigned weight = i * Out::kVector, index = weight % Format::kBlockWeights;
      const unsigned row = weight / Format::kBlockWeights / columns;
      if (row >= rows) break;
      const unsigned column = weight / Format::kBlockWeights % columns;
      decode(shared + pitch * row + skew(row), column, index,
             out + row * out_stride + column * Format::kBlockWeights + index);
    }
  }
};

// Decodes n_rows rows of row_blocks blocks. Blocks of a row lie side by side, as do their weights;
// rows lie source_stride bytes and out_stride weights apart. A row is row_tiles tiles wide; a tile
// is tile_columns blocks of tile_rows rows, Tile::kBlocks at most. kAligned: every block has the
// format's alignment, and every block's weights that of a 16-byte vector.
template <class Format, class Out, bool kAligned>
__global__ void __launch_bounds__(256)
    dequantize(const unsigned char* __restrict__ source, long long source_stride,
               typename Out::Bits* __restrict__ out, long long out_stride, unsigned row_blocks,
               unsigned n_rows, unsigned row_tiles, unsigned tile_columns, unsigned tile_rows) {
  ptx::await_earlier_kernels();
  __shared__ __align__(16) unsigned char shared[Tile<Format, Out, kAligned>::kSharedBytes];
  unsigned row = 0, column = blockIdx.x;
  if (n_rows > 1) row = blockIdx.x / row_tiles * tile_rows, column = blockIdx.x % row_tiles;
  column *= tile_columns;
  const unsigned rows = min(tile_rows, n_rows - row);
  const unsigned columns = min(tile_columns, row_blocks - column);
  const Tile<Format, Out, kAligned> tile = {
      source + row * source_stride + (long long)column * Format::kBlockBytes,
      source_stride,
      out + row * out_stride + (long long)column * Format::kBlockWeights,
      out_stride,
      rows,
      columns,
      (columns * Format::kBlockBytes + 30) / 16 * 16,
      column == 0,
      column + columns == row_blocks};
  if constexpr (kAligned) tile.stage(shared);
  else tile.stage_bytes(shared);
  __syncthreads();
  if (rows == 1) tile.decode_row(shared);
  else tile.decode_rows(shared);
}
