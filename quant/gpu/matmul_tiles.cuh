// Many rows of x as signed bytes: a block decodes kThreads / 4 rows of weights to bytes, 256 weights of
// each at a time, and multiplies them with kColumns rows of x on the tensor cores. Warps stand in two
// columns; each has 16 rows of weights.
#pragma once
#include "matvec.cuh"

constexpr int kDepth = 256, kBytePitch = kDepth + 16;  // the pitch: ldmatrix without bank conflicts

// A block's shared memory: sizes and, from its start, the places of its parts in bytes.
template <class Format, int kThreads, int kColumns>
struct Tile {
  static constexpr int kRows = kThreads / 4, kTiles = kColumns / 16;  // kTiles: of 8 columns, a warp's
  static constexpr int kBlocks = kDepth / Format::kBlockWeights, kRuns = kDepth / Format::kRun;
  static constexpr int kUnits = kBlocks * Format::kUnits;
  static constexpr int kRawBytes = kBlocks * Format::kBlockBytes;
  static constexpr int kPieces = (kRawBytes + (Format::kAlignment > 1 ? 29 : 30)) / 16, kRawPitch = 16 * kPieces;
  static constexpr bool kFolded = Format::kFoldOffset >= 0;
  // Minima of runs are bytes that meet digits of sums of x; a block's only one is a float.
  static constexpr bool kMinima = Format::kMinima && kBlocks == 1, kBlockMinima = Format::kMinima && kBlocks > 1;
  static constexpr bool kFactors = Format::kRuns > 1 && !kFolded, kOffset = Format::kFoldOffset > 0;
  static constexpr int kDigitPitch = 36;
  using Factor = decltype(factor_of<Format>(typename Format::Raw{}, 0));  // what sums of runs are, too
  // parts
  static constexpr int kRaw = 0;                                   // 2 x [kRows][kRawPitch]
  static constexpr int kX = kRaw + 2 * kRows * kRawPitch;          // 2 x [kColumns][kBytePitch]
  static constexpr int kWeights = kX + 2 * kColumns * kBytePitch;  // [kRows][kBytePitch]
  static constexpr int kScales = kWeights + kRows * kBytePitch;    // float [kBlocks][kRows]
  static constexpr int kXScales = kScales + 4 * kBlocks * kRows;   // float [kBlocks][kColumns]
  static constexpr int kRunFactors = kXScales + 4 * kBlocks * kColumns;            // Factor [kRuns][kRows]
  static constexpr int kMinScales = kRunFactors + kFactors * 4 * kRuns * kRows;    // float [kRows]
  static constexpr int kRunMinima = kMinScales + kMinima * 4 * kRows;              // [kRows][16]
  static constexpr int kDigits = kRunMinima + kMinima * 16 * kRows;  // [kColumns][kDigitPitch]
  static constexpr int kXSums = kDigits + kMinima * kDigitPitch * kColumns;  // int [kColumns]
  static constexpr int kMinimaOfBlocks = kXSums + kOffset * 4 * kColumns;                 // float [kBlocks][kRows]
  static constexpr int kXOfMinima = kMinimaOfBlocks + kBlockMinima * 4 * kBlocks * kRows;  // float [kBlocks][kColumns]
  static constexpr int kSharedBytes = kXOfMinima + kBlockMinima * 4 * kBlocks * kColumns;
};

// What a block makes.
struct TilePlace {
  const unsigned char* rows;  // the first one
  int first_row, n_rows;
  Group group;
  bool whole;  // rows come in pieces
};

// A thread's share of copying weights and x, depth after depth.
template <class Format, int kThreads, int kColumns>
struct TileCopies {
  using T = Tile<Format, kThreads, kColumns>;
  static constexpr int kCopies = (T::kPieces + 3) / 4, kXCopies = kColumns * (kDepth / 16) / kThreads;
  static_assert(kColumns * (kDepth / 16) % kThreads == 0, "every thread copies as much of x");
  const unsigned char* from[kCopies];
  const unsigned char* x[kXCopies];

  __device__ __forceinline__ void start(const TilePlace& place, const MatmulCall& call,
                                        const unsigned char* __restrict__ x_bytes) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = (threadIdx.x + i * kThreads) / T::kPieces;
      from[i] = row < place.n_rows ? place.rows + (long long)row * call.row_stride : nullptr;
    }
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const int index = threadIdx.x + i * kThreads, column = index / (kDepth / 16);
      x[i] = nullptr;
      if (column < place.group.count)
        x[i] = x_bytes + (long long)(place.group.first + column) * call.columns + index % (kDepth / 16) * 16;
    }
  }

  // Asks for what comes next: `left` weights of each row are still to come. `buffer` 0 or 1.
  __device__ __forceinline__ void next(unsigned char* shared, const TilePlace& place, int left, int buffer) {
    const int n_bytes = min(kDepth, left) / Format::kBlockWeights * Format::kBlockBytes;
    unsigned char* const raw = shared + T::kRaw + buffer * T::kRows * T::kRawPitch + 16 * threadIdx.x;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int piece = (threadIdx.x + i * kThreads) % T::kPieces;
      const int skew = skew_of(from[i], place.whole);
      if (from[i]) {
        copy_piece(raw + 16 * i * kThreads, from[i] + (16 * piece - skew), n_bytes + skew - 16 * piece,
                   place.whole);
        from[i] += T::kRawBytes;
      }
    }
    unsigned char* const x_tile = shared + T::kX + buffer * kColumns * kBytePitch;
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const int index = threadIdx.x + i * kThreads, k = index % (kDepth / 16) * 16;
      if (x[i]) {
        if (k < left) ptx::cp_async_16(x_tile + index / (kDepth / 16) * kBytePitch + k, x[i]);
        x[i] += kDepth;
      }
    }
  }
};

// Weights as bytes, `left` of each row still to come; everything beyond the matrix as zeros.
template <class Format, int kThreads, int kColumns>
__device__ __forceinline__ void decode_tile(unsigned char* shared, const MatmulCall& call,
                                            const TilePlace& place, int left, int buffer) {
  using T = Tile<Format, kThreads, kColumns>;
  const unsigned begin = (call.columns - left) / Format::kBlockWeights * Format::kBlockBytes;
  float* const scales = reinterpret_cast<float*>(shared + T::kScales);
  using Factor = typename T::Factor;
  Factor* const factors = reinterpret_cast<Factor*>(shared + T::kRunFactors);
#pragma unroll
  for (int i = 0; i < T::kRows * T::kUnits / kThreads; ++i) {
    const int index = threadIdx.x + i * kThreads;
    const int row = index / T::kUnits, unit = index % Format::kUnits;
    const int block = index % T::kUnits / Format::kUnits, first = block * Format::kBlockWeights;
    unsigned char* const to = shared + T::kWeights + row * kBytePitch + first;
    typename Format::Raw raw = {};
    if (row < place.n_rows && first < left) {
      const unsigned start = (unsigned)(size_t)place.rows + row * (unsigned)call.row_stride + begin;
      const int skew = place.whole ? start & 15 : 0;
      raw = Format::load(place_at<Format::kAlignment>(shared + T::kRaw, (buffer * T::kRows + row) * T::kRawPitch + skew +
                                                                            block * Format::kBlockBytes),
                         unit);
    }
#pragma unroll
    for (int run = 0; run < Format::kRuns; ++run) {
      unsigned words[Format::kRun / 4];
      const int start = Format::start(unit, run);
      if constexpr (T::kFolded) {
        Format::folded_words(raw, run, words);
      } else {
        Format::words(raw, run, words);
        if constexpr (T::kFactors) factors[(first + start) / Format::kRun * T::kRows + row] = Format::factor(raw, run);
      }
#pragma unroll
      for (int k = 0; k < Format::kRun / 4; k += 4)
        *reinterpret_cast<uint4*>(to + start + 4 * k) =
            make_uint4(words[k], words[k + 1], words[k + 2], words[k + 3]);
    }
    if (unit == 0) scales[block * T::kRows + row] = raw.d;
    if constexpr (T::kBlockMinima)
      reinterpret_cast<float*>(shared + T::kMinimaOfBlocks)[block * T::kRows + row] = -raw.dmin;
    if constexpr (T::kMinima) {
      if (unit == 0) reinterpret_cast<float*>(shared + T::kMinScales)[row] = raw.dmin;
      unsigned short* const minima = reinterpret_cast<unsigned short*>(shared + T::kRunMinima + 16 * row);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        minima[Format::sums_word(unit, j)] = (unsigned short)Format::minima_word(raw, j);
    }
  }
}

// Scales of x at depth k0 .., and its sums as two digits: sum = 64 * first + second.
template <class Format, int kThreads, int kColumns>
__device__ __forceinline__ void load_x_scales(unsigned char* shared, const ByteRows& x,
                                              const MatmulCall& call, const Group& group, int k0) {
  using T = Tile<Format, kThreads, kColumns>;
  float* const scales = reinterpret_cast<float*>(shared + T::kXScales);
  const int n_blocks = call.columns / Format::kBlockWeights, first_block = k0 / Format::kBlockWeights;
#pragma unroll 1
  for (int i = threadIdx.x; i < kColumns * T::kBlocks; i += kThreads) {
    const int column = i / T::kBlocks, block = i % T::kBlocks;
    float scale = 0.0f;
    if (column < group.count && first_block + block < n_blocks)
      scale = __ldg(x.scales + (long long)(group.first + column) * n_blocks + first_block + block);
    scales[block * kColumns + column] = scale;
    if constexpr (T::kBlockMinima) {
      int sum = 0;
      if (column < group.count && first_block + block < n_blocks) {
        const int pair = __ldg(x.sums + (long long)(group.first + column) * n_blocks + first_block + block);
        sum = (short)pair + (pair >> 16);
      }
      reinterpret_cast<float*>(shared + T::kXOfMinima)[block * kColumns + column] = (float)sum * scale;
    }
  }
  if constexpr (T::kOffset) {
    for (int column = threadIdx.x; column < kColumns; column += kThreads) {
      int sum = 0;
      if (column < group.count) {
        const int* const pairs = x.sums + (long long)(group.first + column) * (call.columns / 32) + k0 / 32;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int pair = __ldg(pairs + i);
          sum += (short)pair + (pair >> 16);
        }
      }
      reinterpret_cast<int*>(shared + T::kXSums)[column] = sum;
    }
  }
  if constexpr (T::kMinima) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kColumns * 8; i += kThreads) {
      const int column = i / 8, word = i % 8;
      int pair = 0;
      if (column < group.count)
        pair = __ldg(x.sums + (long long)(group.first + column) * (call.columns / 32) + k0 / 32 + word);
      const int low = (short)pair, high = pair >> 16;
      const int low_digit = (low + 32) >> 6, high_digit = (high + 32) >> 6;
      unsigned char* const to = shared + T::kDigits + column * T::kDigitPitch + 2 * word;
      *reinterpret_cast<unsigned short*>(to) =
          (unsigned short)((low_digit & 255) | (high_digit & 255) << 8);
      *reinterpret_cast<unsigned short*>(to + 16) =
          (unsigned short)(((low - 64 * low_digit) & 255) | ((high - 64 * high_digit) & 255) << 8);
    }
  }
}

// Adds the products over one depth of 256 to a warp's sums.
template <class Format, int kThreads, int kColumns>
__device__ __forceinline__ void multiply_tile(const unsigned char* shared, int k_valid, int buffer,
                                              float (&total)[kColumns / 16][4]) {
  using T = Tile<Format, kThreads, kColumns>;
  constexpr bool kFactors = T::kFactors;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row = threadIdx.x / 64 * 16, column = threadIdx.x / 32 % 2 * (kColumns / 2);
  const unsigned char* const a_from = shared + T::kWeights + (row + lane % 16) * kBytePitch + lane / 16 * 16;
  const unsigned char* const b_from =
      shared + T::kX + (buffer * kColumns + column + lane % 8) * kBytePitch + lane / 8 * 16;
  const float* const scales = reinterpret_cast<const float*>(shared + T::kScales) + row + g;
  const float* const x_scales = reinterpret_cast<const float*>(shared + T::kXScales) + column + 2 * t;
  using Factor = typename T::Factor;
  const Factor* const factors = reinterpret_cast<const Factor*>(shared + T::kRunFactors) + row + g;

  auto add = [&](int block, int tile, const auto(&dots)[4]) {
    const float2 x = *reinterpret_cast<const float2*>(x_scales + block * kColumns + 8 * tile);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      total[tile][i] = fmaf((float)dots[i], scales[block * T::kRows + 8 * (i / 2)] * (i % 2 ? x.y : x.x),
                            total[tile][i]);
    if constexpr (T::kBlockMinima) {
      const float* const minima = reinterpret_cast<const float*>(shared + T::kMinimaOfBlocks) + row + g;
      const float2 sums = *reinterpret_cast<const float2*>(
          reinterpret_cast<const float*>(shared + T::kXOfMinima) + column + 2 * t + block * kColumns + 8 * tile);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        total[tile][i] = fmaf(minima[block * T::kRows + 8 * (i / 2)], i % 2 ? sums.y : sums.x, total[tile][i]);
    }
  };

  constexpr bool kSums = kFactors || T::kFolded;
  Factor sums[T::kTiles][4];  // of a block of several runs
  if constexpr (kSums) {
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[tile][i] = 0;
        if constexpr (T::kOffset)
          sums[tile][i] = Format::kFoldOffset * reinterpret_cast<const int*>(
                                                    shared + T::kXSums)[column + 8 * tile + 2 * t + i % 2];
      }
  }
  constexpr int kUnroll = kFactors ? 1 : 4;  // more would cost registers
#pragma unroll kUnroll
  for (int k = 0; k < kDepth; k += 64) {
    if (k >= k_valid) break;
    unsigned a[2][4];
    ptx::ldmatrix_x4(a[0], a_from + k);
    ptx::ldmatrix_x4(a[1], a_from + k + 32);
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile) {
      unsigned b[4];
      ptx::ldmatrix_x4(b, b_from + tile * 8 * kBytePitch + k);
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // of 32
        const int index = k / 32 + half;
        if constexpr (T::kFolded) {
          ptx::mma_m16n8k32_s8(sums[tile], a[half], b[2 * half], b[2 * half + 1]);
        } else if constexpr (!kFactors) {
          int dots[4] = {};
          ptx::mma_m16n8k32_s8(dots, a[half], b[2 * half], b[2 * half + 1]);
          add(index, tile, dots);
        } else if constexpr (Format::kRun == 32) {
          int dots[4] = {};
          ptx::mma_m16n8k32_s8(dots, a[half], b[2 * half], b[2 * half + 1]);
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[tile][i] += factors[index * T::kRows + 8 * (i / 2)] * dots[i];
        } else {
#pragma unroll
          for (int run = 0; run < 2; ++run) {  // the other run's weights as zeros
            const unsigned some[4] = {run ? 0 : a[half][0], run ? 0 : a[half][1],
                                      run ? a[half][2] : 0, run ? a[half][3] : 0};
            int dots[4] = {};
            ptx::mma_m16n8k32_s8(dots, some, b[2 * half], b[2 * half + 1]);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              sums[tile][i] += factors[(2 * index + run) * T::kRows + 8 * (i / 2)] * dots[i];
          }
        }
      }
      if constexpr (kSums && T::kBlocks > 1) {
        if ((k + 64) % Format::kBlockWeights == 0) {
          add(k / Format::kBlockWeights, tile, sums[tile]);
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[tile][i] = 0;
        }
      }
    }
  }
  if constexpr (kSums && T::kBlocks == 1) {
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile) add(0, tile, sums[tile]);
  }
  if constexpr (T::kMinima) {
    const unsigned char* const minima = shared + T::kRunMinima + (row + g) * 16 + 4 * t;
    const float* const min_scales = reinterpret_cast<const float*>(shared + T::kMinScales) + row + g;
    const unsigned m[2] = {*reinterpret_cast<const unsigned*>(minima),
                           *reinterpret_cast<const unsigned*>(minima + 8 * 16)};
    const unsigned first[4] = {m[0], m[1], 0, 0}, second[4] = {0, 0, m[0], m[1]};
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile) {
      const unsigned char* const digits =
          shared + T::kDigits + (column + 8 * tile + g) * T::kDigitPitch + 4 * t;
      const unsigned b0 = *reinterpret_cast<const unsigned*>(digits);
      const unsigned b1 = *reinterpret_cast<const unsigned*>(digits + 16);
      int high[4] = {}, low[4] = {};
      ptx::mma_m16n8k32_s8(high, first, b0, b1);
      ptx::mma_m16n8k32_s8(low, second, b0, b1);
      const float2 x = *reinterpret_cast<const float2*>(x_scales + 8 * tile);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        total[tile][i] = fmaf((float)(64 * high[i] + low[i]), -min_scales[8 * (i / 2)] * (i % 2 ? x.y : x.x),
                              total[tile][i]);
    }
  }
}

template <class Format, int kThreads, int kColumns>
__global__ void __launch_bounds__(kThreads, kThreads > 128 ? 1 : kColumns > 16 ? 3
                                                                               : 4)
    matmul_tiles(const unsigned char* __restrict__ weights, const unsigned char* __restrict__ x_bytes,
                 const float* __restrict__ x_scales, const int* __restrict__ x_sums,
                 void* __restrict__ out, const int* __restrict__ order,
                 const int* __restrict__ groups, const MatmulCall call) {
  ptx::await_earlier_kernels();
  using T = Tile<Format, kThreads, kColumns>;
  extern __shared__ __align__(16) unsigned char tiles_shared[];
  unsigned char* const shared = tiles_shared;
  const ByteRows x = {x_bytes, x_scales, x_sums};
  TilePlace place;
  const int index = blockIdx.x % call.n_groups;
  if (index >= count_groups(groups, call)) return;
  place.group = read_group(groups, call, index, kColumns);
  const int row_tile = blockIdx.x / call.n_groups;
  place.first_row = row_tile * T::kRows;
  place.rows = weights + place.group.expert * call.expert_stride + (long long)place.first_row * call.row_stride;
  place.n_rows = min(T::kRows, call.n_rows - place.first_row);
  place.whole = copies_pieces(call, row_tile, (call.n_rows + T::kRows - 1) / T::kRows);

  // Columns that no row of x fills are multiplied too: with zeros.
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * kColumns * (kBytePitch / 16); i += kThreads)
    *reinterpret_cast<uint4*>(shared + T::kX + 16 * i) = make_uint4(0, 0, 0, 0);
  __syncthreads();
  TileCopies<Format, kThreads, kColumns> copies;
  copies.start(place, call, x_bytes);
  copies.next(shared, place, call.columns, 0);

  float total[T::kTiles][4] = {};
  int buffer = 0;
  for (int k0 = 0; k0 < call.columns; k0 += kDepth, buffer ^= 1) {
    ptx::cp_async_wait_all();
    __syncthreads();
    if (k0 + kDepth < call.columns) copies.next(shared, place, call.columns - k0 - kDepth, buffer ^ 1);
    decode_tile<Format, kThreads, kColumns>(shared, call, place, call.columns - k0, buffer);
    load_x_scales<Format, kThreads, kColumns>(shared, x, call, place.group, k0);
    __syncthreads();
    multiply_tile<Format, kThreads, kColumns>(shared, call.columns - k0, buffer, total);
  }

  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 64 * 16 + lane / 4;
  const int column = threadIdx.x / 32 % 2 * (kColumns / 2) + lane % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + 8 * (i / 2), c = column + 8 * tile + i % 2;
      if (r < place.n_rows && c < place.group.count)
        store_out(out, row_of_slot(order, place.group.first + c) * call.out_stride + place.first_row + r,
                  total[tile][i], call.out_type);
    }
}
