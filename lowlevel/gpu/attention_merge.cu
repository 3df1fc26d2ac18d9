// Joins the states of key splits (see attention_fused.cuh) and writes the finished rows: a block for each kPart columns
// of a row, for decoding has few rows.
//
// Four columns a thread; groups of threads share the splits, so that many loads are under way at once.
#ifndef WARPS
#define WARPS 16
#endif

#include "attention_call.cuh"
#include "attention_mma.cuh"

__device__ __forceinline__ float warp_maximum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__device__ __forceinline__ void add(float4& sum, float4 more) {
  sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
}

constexpr int kPart = 128;  // layout.MERGED_COLUMNS

// `d_v`: a multiple of 4.
template <class Type>
__global__ void __launch_bounds__(kThreads)
    attention_merge(const float* __restrict__ state_sums, const float* __restrict__ state_rows,
                    const float* __restrict__ sinks, void* __restrict__ out, float* __restrict__ lse, const int d_v,
                    const __grid_constant__ AttentionCall call) {
  ptx::await_earlier_kernels();
  __shared__ float4 parts[kThreads];
  const long long n_rows = (long long)call.n_head_kv * call.group * call.n_tokens;
  const int n_parts = (d_v + kPart - 1) / kPart, part = blockIdx.x % n_parts;
  const long long row = blockIdx.x / n_parts;  // head * n_tokens + token
  const int head = (int)(row / call.n_tokens), token = (int)(row % call.n_tokens);
  const int lane = threadIdx.x % 32;

  float row_max = -infinity();
  for (int split = lane; split < call.splits; split += 32) row_max = fmaxf(row_max, state_rows[2 * (split * n_rows + row)]);
  row_max = warp_maximum(row_max);
  const float base = base_of(row_max), unit = call.scale * kLog2E;
  float sum = 0.0f;
  for (int split = lane; split < call.splits; split += 32) {
    const long long at = 2 * (split * n_rows + row);
    sum += state_rows[at + 1] * exp2f(log2_of_rescale(state_rows[at], base, unit));
  }
  sum = warp_sum(sum);

  const int n_quads = min(kPart, d_v) / 4, n_groups = kThreads / n_quads;
  const int group = threadIdx.x / n_quads, place = threadIdx.x % n_quads, quad = part * (kPart / 4) + place;
  const bool is_inside = 4 * quad < d_v;
  float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
  if (group < n_groups && is_inside) {
#pragma unroll 4
    for (int split = group; split < call.splits; split += n_groups) {
      const long long at = split * n_rows + row;
      const float factor = exp2f(log2_of_rescale(state_rows[2 * at], base, unit));
      if (factor == 0.0f) continue;  // a split may have seen no key that counts
      const float4 x = *reinterpret_cast<const float4*>(state_sums + at * d_v + quad * 4);
      add(value, {x.x * factor, x.y * factor, x.z * factor, x.w * factor});
    }
  }
  parts[threadIdx.x] = value;
  __syncthreads();
  if (group != 0 || !is_inside) return;
  for (int other = 1; other < min(n_groups, call.splits); ++other) add(value, parts[other * n_quads + place]);

  const RowEnd end = finish_row(row_max * call.scale, sum, sinks, head);
  if (lse != nullptr && part == 0 && threadIdx.x == 0) lse[head * call.lse_head + token] = end.lse;
  const long long at = head * call.out_head + token * call.out_token + quad * 4;
  const float values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) store_out<Type>(out, call.out_is_float32, at + i, values[i] * end.factor);
}
