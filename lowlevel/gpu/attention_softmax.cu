// What the tiles path of attention does beside its products: operands to float32; online softmax over a
// tile of scores, in place, with every option; and writing finished rows. A call describes one tile: its
// heads, its tokens and the keys of one chunk. One block works on one row (head * n_tokens + token).
#include "attention_call.cuh"
#include "float_types.cuh"
#include "ptx.cuh"

constexpr int kThreads = 128, kWarps = kThreads / 32;

struct Maximum {
  static __device__ __forceinline__ float join(float a, float b) { return fmaxf(a, b); }
};
struct Sum {
  static __device__ __forceinline__ float join(float a, float b) { return a + b; }
};

// What the warps' values come to, in two steps; between them all threads must meet.
template <class Join>
__device__ __forceinline__ void put_of_warp(float value, float (&of_warps)[kWarps]) {
  for (int step = 16; step > 0; step /= 2)
    value = Join::join(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
}
template <class Join>
__device__ __forceinline__ float join_warps(const float (&of_warps)[kWarps]) {
  float value = of_warps[0];
  for (int warp = 1; warp < kWarps; ++warp) value = Join::join(value, of_warps[warp]);
  return value;
}

__device__ __forceinline__ bool is_finite(float value) {
  return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// Rows to float32, a block a row; with `clean`, NaN and inf become 0. Source and target may be the same.
template <class Type>
__global__ void __launch_bounds__(kThreads)
    attention_widen(const typename Type::Bits* source, float* target, const int d, const int head_rows,
                    const long long source_head, const long long source_row, const long long target_head,
                    const long long target_row, const int clean) {
  ptx::await_earlier_kernels();
  const long long head = blockIdx.x / head_rows, row = blockIdx.x % head_rows;
  source += head * source_head + row * source_row;
  target += head * target_head + row * target_row;
  for (int column = threadIdx.x; column < d; column += kThreads) {
    const float value = Type::widen(source[column]);
    target[column] = clean && !is_finite(value) ? 0.0f : value;
  }
}

// Which keys have a NaN or inf in their row of V: one block a key of a K/V head.
template <class Type>
__global__ void __launch_bounds__(kThreads)
    attention_scan(const typename Type::Bits* __restrict__ v, float* __restrict__ not_finite, const int d_v,
                   const AttentionCall call) {
  ptx::await_earlier_kernels();
  const long long head_kv = blockIdx.x / call.n_keys, key = blockIdx.x % call.n_keys;
  const typename Type::Bits* row = v + head_kv * call.v_head + key * call.v_key;
  bool found = false;
  for (int column = threadIdx.x; column < d_v; column += kThreads) found |= !is_finite(Type::widen(row[column]));
  found = __syncthreads_or(found);
  if (threadIdx.x == 0) not_finite[blockIdx.x] = found ? 1.0f : 0.0f;
}

// Adds the NaN and inf of V (which the product with V leaves out) to a row's sums where a key has a
// weight; a key that is left out has none.
template <class Type>
__device__ __forceinline__ void add_not_finite(const AttentionCall& call, const float* weights, float* sums,
                                               const typename Type::Bits* v, const float* not_finite, int d_v) {
  for (int key = 0; key < call.n_keys; ++key) {
    if (not_finite[key] == 0.0f || !(weights[key] > 0.0f)) continue;
    for (int column = threadIdx.x; column < d_v; column += kThreads) {
      const float value = Type::widen(v[key * call.v_key + column]);
      if (!is_finite(value)) sums[column] += value;
    }
  }
}

// Scores of a row that a thread keeps in registers: a chunk has kThreads * kHeld keys at most.
constexpr int kHeld = 16;

// `kq`: scores in, weights out, rows `kq_row` apart. `sums` (rows of d_v) are scaled down where the
// maximum has grown. `state`: maximum and sum of each row.
template <class Type>
__global__ void __launch_bounds__(kThreads)
    attention_softmax(float* __restrict__ kq, float* __restrict__ sums, float* __restrict__ state,
                      const float* __restrict__ not_finite, const typename Type::Bits* __restrict__ v,
                      const float* __restrict__ mask, const float* __restrict__ slopes, const int kq_row, const int d_v,
                      const AttentionCall call) {
  ptx::await_earlier_kernels();
  const long long row = blockIdx.x;
  const int head = blockIdx.x / (unsigned)call.n_tokens, token = blockIdx.x % (unsigned)call.n_tokens;
  const int head_kv = head / call.group;
  kq += row * kq_row;
  sums += row * d_v;
  const float* mask_row = mask == nullptr ? nullptr : mask + head * call.mask_head + token * call.mask_token;
  const float slope = slopes == nullptr ? 0.0f : slopes[head];
  const KeyRange range = visible_keys(call, token);

  // What the end needs of the chunks before is asked for now: it comes while scores are worked on.
  const float old = call.resume ? state[2 * row] : -infinity();
  const float old_sum = call.resume && threadIdx.x == 0 ? state[2 * row + 1] : 0.0f;
  const float first_column = call.resume && threadIdx.x < d_v ? sums[threadIdx.x] : 0.0f;
  float held[kHeld];  // of keys threadIdx.x, threadIdx.x + kThreads, ...
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {  // nothing but loads, so that all are under way at once
    const int key = threadIdx.x + i * kThreads;
    held[i] = key < call.n_keys ? kq[key] : 0.0f;
  }
  auto seen = [&](int i, float score) {
    const int key = threadIdx.x + i * kThreads;
    return key >= range.low && key < range.high ? score : -infinity();
  };
  float row_max = -infinity();
  if (call.softcap <= 0.0f && mask_row == nullptr && slope == 0.0f) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) held[i] = seen(i, __fmul_rn(held[i], call.scale));
  } else {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int key = threadIdx.x + i * kThreads;
      if (key < call.n_keys)
        held[i] = general_score<true>(call, held[i], mask_row, key, slope, call.first_position + token);
      held[i] = seen(i, held[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) row_max = fmaxf(row_max, held[i]);
  __shared__ float row_maxima[kWarps], parts[kWarps];
  put_of_warp<Maximum>(row_max, row_maxima);
  __syncthreads();
  row_max = fmaxf(join_warps<Maximum>(row_maxima), old);
  const float reference = row_max == -infinity() ? 0.0f : row_max;

  not_finite += (long long)head_kv * call.n_keys;
  float sum = 0.0f;
  bool met = false;  // a key with a weight and NaN or inf in V
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int key = threadIdx.x + i * kThreads;
    if (key >= call.n_keys) continue;
    const float weight = exp2f((held[i] - reference) * kLog2E);
    kq[key] = weight;
    sum += weight;
    met |= (weight > 0.0f) & (not_finite[key] != 0.0f);
  }
  put_of_warp<Sum>(sum, parts);
  met = __syncthreads_or(met);  // the weights are there, too
  const float rescale = exp2f((old - reference) * kLog2E);
  if (threadIdx.x < d_v) sums[threadIdx.x] = call.resume ? first_column * rescale : 0.0f;
  for (int column = threadIdx.x + kThreads; column < d_v; column += kThreads)
    sums[column] = call.resume ? sums[column] * rescale : 0.0f;
  if (threadIdx.x == 0) {
    sum = join_warps<Sum>(parts);
    state[2 * row] = row_max;
    state[2 * row + 1] = call.resume ? old_sum * rescale + sum : sum;
  }
  if (met) add_not_finite<Type>(call, kq, sums, v + head_kv * call.v_head, not_finite, d_v);
}

template <class Type>
__global__ void __launch_bounds__(kThreads)
    attention_finish(const float* __restrict__ sums, const float* __restrict__ state, const float* __restrict__ sinks,
                     typename Type::Bits* __restrict__ out, float* __restrict__ lse, const int d_v,
                     const AttentionCall call) {
  ptx::await_earlier_kernels();
  const long long row = blockIdx.x;
  const int head = blockIdx.x / (unsigned)call.n_tokens, token = blockIdx.x % (unsigned)call.n_tokens;
  const RowEnd end = finish_row(state[2 * row], state[2 * row + 1], sinks, head);
  if (lse != nullptr && threadIdx.x == 0) lse[head * call.lse_head + token] = end.lse;
  for (int column = threadIdx.x; column < d_v; column += kThreads)
    out[head * call.out_head + token * call.out_token + column] = Type::narrow(sums[row * d_v + column] * end.factor);
}
