// Few rows of x as signed bytes: dp4a.
#pragma once
#include "matmul_quantise.cuh"
#include "matmul_stream.cuh"

// Rows of x as matmul_x.cu prepares them; `bytes` in the order of matmul_formats.cuh for kernels that stream.
struct ByteRows {
  const unsigned char* bytes;
  const float* scales;
  const int* sums;  // pairs of 16 bits, each for 32 values
  __device__ __forceinline__ void begin(int) const {}
  __device__ __forceinline__ void prepare(int) const {}
  template <class T>
  __device__ __forceinline__ T load(const T* from) const {
    return __ldg(from);
  }
};

// As many threads as a multiprocessor has at work: they make bytes of x once.
constexpr int kSingleThreads = 512;

// One row of x that a block makes bytes of for itself, in shared memory, while its first weights come.
template <class Format>
struct OwnByteRow {
  const void* row;
  int type;
  unsigned char* bytes;
  float* scales;
  int* sums;
  float values[8];
  // Before all copies: behind them they would come late.
  __device__ __forceinline__ void begin(int columns) {
    load_part(row, type, threadIdx.x / 32, columns, values);
  }
  __device__ __forceinline__ void prepare(int columns) {
    constexpr int kBlock = Format::kBlockWeights;
#pragma unroll 1
    for (int part = threadIdx.x / 32; part * 256 < columns; part += kSingleThreads / 32) {
      if (part >= kSingleThreads / 32) load_part(row, type, part, columns, values);
      quantise_part<kBlock, Format::kInterleaved, Format::kSums, true>(values, part, columns, bytes, scales,
                                                                       reinterpret_cast<short*>(sums));
    }
    __syncthreads();
  }
  template <class T>
  __device__ __forceinline__ T load(const T* from) const {
    return *from;
  }
};

// `X` says where the bytes are: x.load(pointer) reads from there, x.begin(columns) and x.prepare(columns)
// make them.
template <class Format, int kColumns, class X>
struct ByteSums {
  static constexpr int kBlocks = Format::kBlockWeights > 32 ? 1 : 2;  // of a lane
  static constexpr int kChunkBytes = 32 * kBlocks / Format::kUnits * Format::kBlockBytes;
  // Rows share what is loaded of x; for four of them and many columns only few warps have the registers, and
  // for some formats (kFewFrom) none. Long chunks leave no shared memory for more than one or two.
  static constexpr bool kFew = kChunkBytes > 1500 || kColumns >= Format::kFewFrom;
  static constexpr int kRows = (kColumns > 2 ? 2 : 1) * (kFew && kColumns != 2 ? 1 : 2);
  using Rows = Stream<Format, kRows, kBlocks>;
  // A second byte of each weight costs a multiplication for each column.
  static constexpr int kTerms = kColumns > 2 ? 1 : Format::kTerms;
  static constexpr int kWords = Format::kRun / 4;
  X x;
  static constexpr bool kPacks = kColumns == 1;
  const int columns, lane;  // which of those that have a row
  int slots[kColumns];
  float total[kRows][kColumns];

  __device__ __forceinline__ ByteSums(const X& x, const MatmulCall& call)
      : x(x), columns(call.columns), lane(threadIdx.x % 32 & (kPacks ? call.row_lanes - 1 : 31)) {}

  __device__ __forceinline__ void begin() { x.begin(columns); }
  __device__ __forceinline__ void prepare() { x.prepare(columns); }

  __device__ __forceinline__ void start(int first, int count) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      slots[c] = first + min(c, count - 1);
#pragma unroll
      for (int i = 0; i < kRows; ++i) total[i][c] = 0.0f;
    }
  }

  __device__ __forceinline__ void add(const Place (&places)[kRows], int chunk) {
    if constexpr (kBlocks * Format::kBlockBytes % 4 == 0) {
      int shifts = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) shifts |= places[i].shift;
      if (shifts == 0) {  // the same for all lanes
        add_block<0, true>(places, chunk);
        if constexpr (kBlocks == 2)
          if (has_second(chunk)) add_block<1, true>(places, chunk);
        return;
      }
    }
    add_block<0, false>(places, chunk);
    if constexpr (kBlocks == 2)
      if (has_second(chunk)) add_block<1, false>(places, chunk);
  }

  __device__ __forceinline__ bool has_second(int chunk) const {
    return chunk * kChunkWeights + lane * kLaneWeights + Format::kBlockWeights < columns;
  }

  // A lane's first or second block, or its unit.
  template <int kBlock, bool kAligned>
  __device__ __forceinline__ void add_block(const Place (&places)[kRows], int chunk) {
    constexpr int kOffset = kBlock * Format::kBlockBytes;
    const int unit = lane % Format::kUnits;
    const int block = (32 * chunk + lane) * kBlocks / Format::kUnits + kBlock;
    typename Format::Raw raw[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if constexpr (kAligned) {
        const KnownPlace<kOffset & 2> place = {places[i].base, places[i].offset + (kOffset & ~3)};
        raw[i] = Format::load(place, unit);
      } else {
        raw[i] = Format::load(place_at<Format::kAlignment>(places[i].base, places[i].offset + places[i].shift + kOffset), unit);
      }
    }
    decltype(factor_of<Format>(raw[0], 0)) dots[kRows][kColumns];
#pragma unroll
    for (int run = 0; run < Format::kRuns; ++run) {
      unsigned words[kRows][kTerms * kWords];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if constexpr (kTerms > 1) Format::terms(raw[i], run, words[i]);
        else Format::words(raw[i], run, words[i]);
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        int values[kWords];
        load_run<kBlock>(c, chunk, unit, run, values);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          int dot = 0;
#pragma unroll
          for (int k = 0; k < kTerms * kWords; ++k)
            dot = __dp4a((int)words[i][k], values[k / kTerms], dot);
          const auto factor = factor_of<Format>(raw[i], run);
          dots[i][c] = run ? dots[i][c] + factor * dot : factor * dot;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float scale = x.load(x.scales + (long long)slots[c] * (columns / Format::kBlockWeights) + block);
      int sums[2];
      if constexpr (Format::kMinima) {
#pragma unroll
        for (int i = 0; i < (Format::kBlockWeights == 32 ? 1 : 2); ++i)
          sums[i] = x.load(x.sums + (long long)slots[c] * (columns / 32) + Format::kBlockWeights / 32 * block +
                           Format::sums_word(unit, i));
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float& sum = total[i][c];
        sum = fmaf((float)dots[i][c], raw[i].d * scale, sum);
        if constexpr (Format::kMinima)
          sum = fmaf((float)Format::dot_minima(raw[i], sums), -raw[i].dmin * scale, sum);
      }
    }
  }

  template <int kBlock>
  __device__ __forceinline__ void load_run(int column, int chunk, int unit, int run,
                                           int (&values)[kWords]) const {
    const unsigned char* const from =
        x.bytes + (long long)slots[column] * streamed_pitch(columns) + chunk * kChunkWeights;
#pragma unroll
    for (int j = 0; j < kWords / 4; ++j) {
      const int neighbour = lane + Format::x_neighbour(unit, j);
      const int piece = Format::x_piece(unit, kBlock, run, j);
      const uint4 four = x.load(reinterpret_cast<const uint4*>(from) + piece * 32 + neighbour);
      values[4 * j] = (int)four.x, values[4 * j + 1] = (int)four.y;
      values[4 * j + 2] = (int)four.z, values[4 * j + 3] = (int)four.w;
    }
  }
};

template <class Format, int kColumns>
__global__ void __launch_bounds__(kStreamThreads, kColumns > 2 ? 1 : 2)
    matvec(const unsigned char* __restrict__ weights, const unsigned char* __restrict__ x_bytes,
           const float* __restrict__ x_scales, const int* __restrict__ x_sums, void* __restrict__ out,
           const int* __restrict__ order, const int* __restrict__ groups, const MatmulCall call) {
  ptx::await_earlier_kernels();
  extern __shared__ __align__(16) unsigned char matvec_shared[];
  const ByteRows x = {x_bytes, x_scales, x_sums};
  stream_products<Format, kColumns>(ByteSums<Format, kColumns, ByteRows>(x, call), weights, out, order, groups,
                                    call, matvec_shared);
}

// A single row of x, as it is: no kernel need run before this one.
template <class Format>
__global__ void __launch_bounds__(kSingleThreads, 1)
    matvec_single(const unsigned char* __restrict__ weights, const void* __restrict__ x,
                  void* __restrict__ out, const int* __restrict__ order,
                  const int* __restrict__ groups, const MatmulCall call) {
  ptx::await_earlier_kernels();
  extern __shared__ __align__(16) unsigned char single_shared[];
  using Slots = typename ByteSums<Format, 1, OwnByteRow<Format>>::Rows;
  unsigned char* const bytes = single_shared + kSingleThreads / 32 * Slots::kWarpBytes;
  float* const scales = reinterpret_cast<float*>(bytes + streamed_pitch(call.columns));
  int* const x_sums = reinterpret_cast<int*>(scales + call.columns / Format::kBlockWeights);
  const OwnByteRow<Format> own = {x, call.x_type, bytes, scales, x_sums};
  stream_products<Format, 1>(ByteSums<Format, 1, OwnByteRow<Format>>(own, call), weights, out, order,
                             groups, call, single_shared);
}
