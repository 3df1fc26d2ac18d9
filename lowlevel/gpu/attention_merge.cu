// Joins the states of key splits (see attention_fused.cu) and writes the finished rows: one block a row.
#ifndef WARPS
#define WARPS 4
#endif

#include "attention_call.cuh"
#include "attention_mma.cuh"

template <class Type>
__global__ void __launch_bounds__(kThreads)
attention_merge(const float* __restrict__ state_sums, const float* __restrict__ state_rows,
                const float* __restrict__ sinks, void* __restrict__ out, float* __restrict__ lse, const int d_v,
                const __grid_constant__ AttentionCall call) {
  const long long n_rows = (long long)call.n_head_kv * call.group * call.n_tokens;
  const long long row = blockIdx.x;  // head * n_tokens + token
  const int head = (int)(row / call.n_tokens), token = (int)(row % call.n_tokens);

  float top = -infinity();
  for (int split = 0; split < call.splits; ++split) top = fmaxf(top, state_rows[2 * (split * n_rows + row)]);
  const float base = base_of(top), unit = call.scale * kLog2E;
  float sum = 0.0f;
  for (int split = 0; split < call.splits; ++split) {
    const long long at = 2 * (split * n_rows + row);
    sum += state_rows[at + 1] * exp2f(log2_of_shrink(state_rows[at], base, unit));
  }
  const RowEnd end = finish_row(top * call.scale, sum, sinks, head);
  if (lse != nullptr && threadIdx.x == 0) lse[head * call.lse_head + token] = end.lse;
  for (int column = threadIdx.x; column < d_v; column += kThreads) {
    float value = 0.0f;
    for (int split = 0; split < call.splits; ++split) {
      const long long at = split * n_rows + row;
      const float factor = exp2f(log2_of_shrink(state_rows[2 * at], base, unit));
      if (factor != 0.0f) value += state_sums[at * d_v + column] * factor;  // a split may have seen no key
    }
    store_out<Type>(out, call.out_is_float32, head * call.out_head + token * call.out_token + column, value * end.factor);
  }
}
