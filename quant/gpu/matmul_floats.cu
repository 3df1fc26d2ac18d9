// Products with F32, F16 and BF16; x is always float32.
#include "matmul_exact.cuh"

// A unit is 16 bytes; a row's last one may be shorter, and counts as zeros there.
template <class Type>
struct FloatUnits {
  static constexpr int kBlockWeights = Type::kVector, kBlockBytes = 16, kUnits = 1, kRuns = 1;
  static constexpr int kRun = kBlockWeights, kBytes = sizeof(typename Type::Bits);
  static constexpr int kAlignment = kBytes;
  static constexpr bool kMinima = false, kInterleaved = false;
  struct Raw {
    float value[kRun];
  };
  static __device__ __forceinline__ float value_of(unsigned bits) {
    if constexpr (kBytes == 4) return __uint_as_float(bits);
    else return Type::widen((unsigned short)bits);
  }
  static __device__ __forceinline__ void values_of(const unsigned (&words)[4], float (&value)[kRun]) {
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      value[i] = value_of(kBytes == 4 ? words[i % 4] : words[i * kBytes / 4] >> (16 * (i % 2)) & 0xffff);
  }
  static __device__ __forceinline__ Raw load(const Place& unit, int valid) {
    Raw raw;
    if (valid >= kRun) {
      unsigned words[4];
      read_last_words(unit, 0, words);
      values_of(words, raw.value);
    } else {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        raw.value[i] = 0.0f;
        if (i >= valid) continue;
        unsigned bits = read_half_word(unit, kBytes * i);
        if (kBytes == 4) bits |= read_half_word(unit, kBytes * i + 2) << 16;
        raw.value[i] = value_of(bits);
      }
    }
    return raw;
  }
  static __device__ __forceinline__ int start(int, int) { return 0; }
};
using F32 = FloatUnits<Float32>;
using F16 = FloatUnits<Float16>;
using BF16 = FloatUnits<Bfloat16>;

// A unit of a row in global memory, at any address; zeros behind the `valid` first.
template <class Format>
__device__ __forceinline__ void load_from_global(const unsigned char* __restrict__ from, int valid,
                                                 float (&value)[Format::kRun]) {
  constexpr int kBytes = Format::kBytes;
  if (valid >= Format::kRun && ((size_t)from & 15) == 0) {
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(from));
    const unsigned words[4] = {four.x, four.y, four.z, four.w};
    Format::values_of(words, value);
    return;
  }
#pragma unroll
  for (int i = 0; i < Format::kRun; ++i) {
    value[i] = 0.0f;
    if (i >= valid) continue;
    unsigned bits = 0;
#pragma unroll
    for (int byte = 0; byte < kBytes; ++byte) bits |= (unsigned)__ldg(from + kBytes * i + byte) << (8 * byte);
    value[i] = Format::value_of(bits);
  }
}

// Few rows of weights, a router's, and a few of x: a block a row, whose threads share its columns. Where a warp has a row
// to itself (matvec_exact), it waits for one chunk of columns after the other, and most multiprocessors have none.
constexpr int kFewThreads = 256;

template <class Format, int kColumns>
__global__ void __launch_bounds__(kFewThreads, 2)
    matvec_few(const unsigned char* __restrict__ weights, const float* __restrict__ x, void* __restrict__ out,
               const int* __restrict__ order, const int* __restrict__ groups, const MatmulCall call) {
  ptx::await_earlier_kernels();
  constexpr int kWarps = kFewThreads / 32;
  __shared__ float parts[kWarps][kColumns];
  const int index = blockIdx.x / call.n_rows, row = blockIdx.x % call.n_rows;
  const Group group = slots_of(groups, call, index, kColumns);
  const long long matrix = groups ? matrix_of(groups, call, index) : 0;
  const unsigned char* const from = weights + matrix * call.expert_stride + (long long)row * call.row_stride;
  const float* rows[kColumns];
  float sums[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    rows[c] = x + (long long)(group.first + min(c, group.count - 1)) * call.x_columns;
    sums[c] = 0.0f;
  }
  const int n_units = (call.columns + Format::kRun - 1) / Format::kRun;
  constexpr int kAtOnce = kColumns > 1 ? 1 : 4;
#pragma unroll kAtOnce
  for (int unit = threadIdx.x; unit < n_units; unit += kFewThreads) {
    float w[Format::kRun];
    load_from_global<Format>(from + 16 * unit, call.columns - unit * Format::kRun, w);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int k = 0; k < Format::kRun; k += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(rows[c] + unit * Format::kRun + k));
        sums[c] = fmaf(w[k], four.x, sums[c]), sums[c] = fmaf(w[k + 1], four.y, sums[c]);
        sums[c] = fmaf(w[k + 2], four.z, sums[c]), sums[c] = fmaf(w[k + 3], four.w, sums[c]);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sums[c] += __shfl_xor_sync(0xffffffffu, sums[c], step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32][c] = sums[c];
  }
  __syncthreads();
  const int column = threadIdx.x;
  if (column >= min(kColumns, group.count)) return;
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp][column];
  if (!has_matrix(groups, call, index)) sum = __uint_as_float(0x7fc00000u);
  store_out(out, row_of_slot(order, group.first + column) * call.out_stride + row, sum, call.out_type);
}
