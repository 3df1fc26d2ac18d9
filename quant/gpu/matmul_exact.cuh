// x as float32: weights become floats, as dequantised. A few rows stream (matvec_exact); many meet tiles
// of 32 x 32 (matmul_exact).
#pragma once
#include "matmul_stream.cuh"

// Weights of a run as floats, four at a time, as dequantisation makes them.
template <class Format>
struct RunWeights {
  unsigned words[Format::kBlockWeights >= 32 ? Format::kRun / 4 : 1];
  float scale, lowest;
  __device__ __forceinline__ RunWeights(const typename Format::Raw& raw, int run) {
    if constexpr (Format::kBlockWeights >= 32) {
      Format::words(raw, run, words);
      scale = raw.d * (float)factor_of<Format>(raw, run);
      if constexpr (Format::kMinima) lowest = raw.dmin * (float)Format::run_minimum(raw, run);
    }
  }
  __device__ __forceinline__ void four(const typename Format::Raw& raw, int k, float (&w)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (Format::kBlockWeights < 32) w[i] = raw.value[k + i];
      else if constexpr (Format::kMinima) w[i] = fmaf((float)signed_byte(words[k / 4], i), scale, -lowest);
      else w[i] = (float)signed_byte(words[k / 4], i) * scale;
    }
  }
};

// `valid`: how many weights there are from the block's first on.
template <class Format>
__device__ __forceinline__ typename Format::Raw load_unit(const Place& block, int unit, int valid) {
  if constexpr (Format::kBlockWeights >= 32) return Format::load(block, unit);
  else return Format::load(block, valid);
}

template <class Format, int kColumns>
struct FloatSums {
  static constexpr int kRows = kColumns > 1 ? 1 : 2, kRun = Format::kRun;
  using Rows = Stream<Format, kRows, 1>;
  static constexpr bool kPacks = false;
  const float* const x;
  const int columns;
  const long long x_columns;
  const float* rows[kColumns];
  float total[kRows][kColumns];

  __device__ __forceinline__ FloatSums(const float* x, const MatmulCall& call)
      : x(x), columns(call.columns), x_columns(call.x_columns) {}

  __device__ __forceinline__ void begin() {}
  __device__ __forceinline__ void prepare() {}

  __device__ __forceinline__ void start(int first, int count) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      rows[c] = x + (first + min(c, count - 1)) * x_columns;
#pragma unroll
      for (int i = 0; i < kRows; ++i) total[i][c] = 0.0f;
    }
  }

  __device__ __forceinline__ void add(const Place (&blocks)[kRows], int chunk) {
    const int unit_of_row = 32 * chunk + threadIdx.x % 32;
    const int block = unit_of_row / Format::kUnits, unit = unit_of_row % Format::kUnits;
    typename Format::Raw raw[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      raw[i] = load_unit<Format>(blocks[i], unit, columns - block * Format::kBlockWeights);
#pragma unroll
    for (int run = 0; run < Format::kRuns; ++run) {
      const long long at = (long long)block * Format::kBlockWeights + Format::start(unit, run);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const RunWeights<Format> weights(raw[i], run);
#pragma unroll
        for (int k = 0; k < kRun; k += 4) {
          float w[4];
          weights.four(raw[i], k, w);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const float4 four = __ldg(reinterpret_cast<const float4*>(rows[c] + at + k));
            float& sum = total[i][c];
            sum = fmaf(w[0], four.x, sum), sum = fmaf(w[1], four.y, sum);
            sum = fmaf(w[2], four.z, sum), sum = fmaf(w[3], four.w, sum);
          }
        }
      }
    }
  }
};

template <class Format, int kColumns>
__global__ void __launch_bounds__(kStreamThreads, kColumns > 1 ? 1 : 2)
    matvec_exact(const unsigned char* __restrict__ weights, const float* __restrict__ x,
                 void* __restrict__ out, const int* __restrict__ order,
                 const int* __restrict__ groups, const MatmulCall call) {
  ptx::await_earlier_kernels();
  extern __shared__ __align__(16) unsigned char exact_shared[];
  stream_products<Format, kColumns>(FloatSums<Format, kColumns>(x, call), weights, out, order, groups,
                                    call, exact_shared);
}

// ---- tiles ----------------------------------------------------------------------------------------

constexpr int kExactThreads = 128, kExactRows = 32, kExactColumns = 32;

template <class Format>
struct ExactTile {
  static constexpr int kDepth = Format::kBlockWeights > 64 ? Format::kBlockWeights : 64;  // weights of a row at a time
  static constexpr int kBytes = kDepth / Format::kBlockWeights * Format::kBlockBytes;
  static constexpr int kPieces = (kBytes + 30) / 16, kRawPitch = 16 * kPieces;
  static constexpr int kPitch = kDepth + 4;  // floats
  static constexpr int kUnits = kDepth / Format::kBlockWeights * Format::kUnits;
  static constexpr int kUnitWeights = Format::kBlockWeights / Format::kUnits;
};

template <class Format>
__global__ void __launch_bounds__(128, 3)
    matmul_exact(const unsigned char* __restrict__ weights, const float* __restrict__ x,
                 void* __restrict__ out, const int* __restrict__ order,
                 const int* __restrict__ groups, const MatmulCall call) {
  ptx::await_earlier_kernels();
  using T = ExactTile<Format>;
  extern __shared__ __align__(16) float tile_shared[];
  float* const w_tile = tile_shared;                        // [kExactRows][kPitch]
  float* const x_tile = w_tile + kExactRows * T::kPitch;    // [kExactColumns][kPitch]
  unsigned char* const raw_tile = reinterpret_cast<unsigned char*>(x_tile + kExactColumns * T::kPitch);
  const int thread = threadIdx.x;
  const int index = blockIdx.x % call.n_groups;
  if (index >= count_groups(groups, call)) return;
  const Group group = read_group(groups, call, index, kExactColumns);
  const int row_tile = blockIdx.x / call.n_groups, first_row = row_tile * kExactRows;
  const unsigned char* const matrix = weights + group.expert * call.expert_stride;
  const int n_rows = min(kExactRows, call.n_rows - first_row);
  const bool whole = copies_pieces(call, row_tile, (call.n_rows + kExactRows - 1) / kExactRows);

  float total[2][4] = {};
  const int row = thread / 8, column = thread % 8;
  for (int k0 = 0; k0 < call.columns; k0 += T::kDepth) {
    const long long begin = (long long)(k0 / Format::kBlockWeights) * Format::kBlockBytes;
    const int n_bytes = min(T::kBytes, call.row_bytes - (int)begin);
#pragma unroll 1
    for (int i = thread; i < n_rows * T::kPieces; i += kExactThreads) {
      const int r = i / T::kPieces, piece = i % T::kPieces;
      const unsigned char* const from = matrix + (long long)(first_row + r) * call.row_stride + begin;
      const int skew = skew_of(from, whole);
      copy_piece(raw_tile + 16 * i, from - skew + 16 * piece, n_bytes + skew - 16 * piece, whole);
    }
#pragma unroll 1
    for (int i = thread; i < group.count * (T::kDepth / 4); i += kExactThreads) {
      const int c = i / (T::kDepth / 4), k = i % (T::kDepth / 4) * 4;
      float* const to = x_tile + c * T::kPitch + k;
      if (k0 + k < call.x_columns) ptx::cp_async_16(to, x + (long long)(group.first + c) * call.x_columns + k0 + k);
    }
    ptx::cp_async_wait_all();
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < n_rows * T::kUnits; i += kExactThreads) {
      const int r = i / T::kUnits, block = i % T::kUnits / Format::kUnits, unit = i % Format::kUnits;
      const unsigned char* const from = matrix + (long long)(first_row + r) * call.row_stride + begin;
      const int skew = skew_of(from, whole);
      const int first = block * Format::kBlockWeights, valid = call.columns - k0 - first;
      if (valid <= 0) continue;
      const typename Format::Raw raw = load_unit<Format>(
          place_at<Format::kAlignment>(raw_tile, r * T::kRawPitch + skew + block * Format::kBlockBytes), unit, valid);
#pragma unroll
      for (int run = 0; run < Format::kRuns; ++run) {
        const RunWeights<Format> some(raw, run);
        float* const to = w_tile + r * T::kPitch + first + Format::start(unit, run);
#pragma unroll
        for (int k = 0; k < Format::kRun; k += 4) {
          float w[4];
          some.four(raw, k, w);
          *reinterpret_cast<float4*>(to + k) = make_float4(w[0], w[1], w[2], w[3]);
        }
      }
    }
    __syncthreads();
    float sums[2][4] = {};
    const int depth = min(T::kDepth, (call.columns - k0 + 3) / 4 * 4);
#pragma unroll 2
    for (int k = 0; k < depth; k += 4) {
      float4 a[2], b[4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        a[i] = *reinterpret_cast<const float4*>(w_tile + min(row + 16 * i, n_rows - 1) * T::kPitch + k);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        b[j] = *reinterpret_cast<const float4*>(x_tile + min(column + 8 * j, group.count - 1) * T::kPitch + k);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[i][j] = fmaf(a[i].x, b[j].x, sums[i][j]), sums[i][j] = fmaf(a[i].y, b[j].y, sums[i][j]);
          sums[i][j] = fmaf(a[i].z, b[j].z, sums[i][j]), sums[i][j] = fmaf(a[i].w, b[j].w, sums[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) total[i][j] += sums[i][j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = row + 16 * i, c = column + 8 * j;
      if (r < n_rows && c < group.count)
        store_out(out, row_of_slot(order, group.first + c) * call.out_stride + first_row + r, total[i][j],
                  call.out_type);
    }
}
