// Few rows of x as signed bytes: dp4a.
#pragma once
#include "matmul_quantise.cuh"
#include "matmul_stream.cuh"

// Rows of x as matmul_x.cu prepares them.
struct ByteRows {
  const unsigned char* bytes;
  const float* scales;
  const int* sums;  // pairs of 16 bits; eight for 256 values
  __device__ __forceinline__ void prepare(int) const {}
  template <class T>
  __device__ __forceinline__ T load(const T* from) const {
    return __ldg(from);
  }
};

// One row of x that a block makes bytes of for itself, in shared memory, while its first weights come.
template <class Format>
struct OwnByteRow {
  const float* row;
  unsigned char* bytes;
  float* scales;
  int* sums;
  __device__ __forceinline__ void prepare(int columns) const {
    constexpr int kBlock = Format::kBlockWeights;
    for (int part = threadIdx.x / 32; part * 256 < columns; part += kStreamThreads / 32)
      quantise_part<kBlock, Format::kInterleaved>(row, part, columns, bytes, scales,
                                                  reinterpret_cast<short*>(sums));
    __syncthreads();
  }
  template <class T>
  __device__ __forceinline__ T load(const T* from) const {
    return *from;
  }
};

// `X` says where the bytes are: x.load(pointer) reads from there, x.prepare(call) makes them.
template <class Format, int kColumns, class X>
struct ByteSums {
  static constexpr int kWords = Format::kRun / 4;
  static constexpr bool kMuch = 32 / Format::kUnits * Format::kBlockBytes > 800;
  static constexpr int kRows = kMuch || (kColumns > 1 && Format::kUnits > 1) ? 2 : 4;
  using Rows = Stream<Format, kRows>;
  const X x;
  const int columns;
  long long slots[kColumns];
  float total[kRows][kColumns];

  __device__ __forceinline__ ByteSums(const X& x, const MatmulCall& call)
      : x(x), columns(call.columns) {}

  __device__ __forceinline__ void prepare() { x.prepare(columns); }

  __device__ __forceinline__ void start(int first, int count) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      slots[c] = first + min(c, count - 1);
#pragma unroll
      for (int i = 0; i < kRows; ++i) total[i][c] = 0.0f;
    }
  }

  __device__ __forceinline__ void add(const Place (&blocks)[kRows], int unit_of_row) {
    const int block = unit_of_row / Format::kUnits, unit = unit_of_row % Format::kUnits;
    typename Format::Raw raw[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) raw[i] = Format::load(blocks[i], unit);
    int dots[kRows][kColumns];
#pragma unroll
    for (int run = 0; run < Format::kRuns; ++run) {
      int values[kColumns][kWords];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) load_run(slots[c], block, unit, run, values[c]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        unsigned words[kWords];
        Format::words(raw[i], run, words);
        const int factor = factor_of<Format>(raw[i], run);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          int dot = 0;
#pragma unroll
          for (int k = 0; k < kWords; ++k) dot = __dp4a((int)words[k], values[c][k], dot);
          dots[i][c] = run ? dots[i][c] + factor * dot : factor * dot;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float scale = x.load(x.scales + slots[c] * (columns / Format::kBlockWeights) + block);
      int sums[2];
      if constexpr (Format::kMinima) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          sums[i] = x.load(x.sums + slots[c] * (columns / 32) + 8 * block + Format::sums_word(unit, i));
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

  __device__ __forceinline__ void load_run(long long slot, int block, int unit, int run,
                                           int (&values)[kWords]) const {
    const uint4* const from = reinterpret_cast<const uint4*>(
        x.bytes + slot * columns + (long long)block * Format::kBlockWeights + Format::start(unit, run));
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 four = x.load(from + i);
      values[4 * i] = (int)four.x, values[4 * i + 1] = (int)four.y;
      values[4 * i + 2] = (int)four.z, values[4 * i + 3] = (int)four.w;
    }
  }
};

template <class Format, int kColumns>
__global__ void __launch_bounds__(128, kColumns > 1 ? 3 : 4)
    matvec(const unsigned char* __restrict__ weights, const unsigned char* __restrict__ x_bytes,
           const float* __restrict__ x_scales, const int* __restrict__ x_sums, float* __restrict__ out,
           const int* __restrict__ order, const int* __restrict__ groups, const MatmulCall call) {
  extern __shared__ __align__(16) unsigned char matvec_shared[];
  const ByteRows x = {x_bytes, x_scales, x_sums};
  stream_products<Format, kColumns>(ByteSums<Format, kColumns, ByteRows>(x, call), weights, out, order, groups,
                                    call, matvec_shared);
}

// A single row of x, as it is: no kernel need run before this one.
template <class Format>
__global__ void __launch_bounds__(128, 4)
    matvec_single(const unsigned char* __restrict__ weights, const float* __restrict__ x,
                  float* __restrict__ out, const int* __restrict__ order,
                  const int* __restrict__ groups, const MatmulCall call) {
  extern __shared__ __align__(16) unsigned char single_shared[];
  using Slots = typename ByteSums<Format, 1, OwnByteRow<Format>>::Rows;
  unsigned char* const bytes = single_shared + kStreamThreads / 32 * Slots::kWarpBytes;
  float* const scales = reinterpret_cast<float*>(bytes + call.columns);
  int* const x_sums = reinterpret_cast<int*>(scales + call.columns / Format::kBlockWeights);
  const OwnByteRow<Format> own = {x, bytes, scales, x_sums};
  stream_products<Format, 1>(ByteSums<Format, 1, OwnByteRow<Format>>(own, call), weights, out, order,
                             groups, call, single_shared);
}
