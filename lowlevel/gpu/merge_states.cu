// Brings attention over one more part of the keys into what earlier parts gave: see merge_states.py. One block a row.
#include "float_types.cuh"
#include "ptx.cuh"

constexpr int kThreads = 128;

struct MergeCall {
  long long part_head, part_token, part_lse_head, part_lse_token;  // strides in items
  long long out_head, out_token, lse_head, lse_token;
  int n_tokens, d_v;
  int is_first;  // nothing is in out and lse yet
  int unused;
};

// out = (exp(lse) out + exp(part_lse) part) / (exp(lse) + exp(part_lse)), lse = log of the divisor, both measured
// from the larger; a state of weight 0 adds nothing, even NaN.
template <class Type>
__global__ void __launch_bounds__(kThreads)
    merge_states(float* out, float* lse, const typename Type::Bits* __restrict__ part, const float* __restrict__ part_lse,
                 const MergeCall call) {
  ptx::await_earlier_kernels();
  const int head = blockIdx.x / (unsigned)call.n_tokens, token = blockIdx.x % (unsigned)call.n_tokens;
  out += head * call.out_head + token * call.out_token;
  lse += head * call.lse_head + token * call.lse_token;
  part += head * call.part_head + token * call.part_token;
  const float minus_inf = __int_as_float(0xff800000);
  const float theirs = part_lse[head * call.part_lse_head + token * call.part_lse_token];
  const float ours = call.is_first ? minus_inf : *lse;
  const float larger = fmaxf(ours, theirs);
  const float base = larger == minus_inf ? 0.0f : larger;
  const float our_weight = expf(ours - base), their_weight = expf(theirs - base);
  const float total = our_weight + their_weight;
  const float our_share = total == 0.0f ? 0.0f : our_weight / total;
  const float their_share = total == 0.0f ? 0.0f : their_weight / total;
  for (int column = threadIdx.x; column < call.d_v; column += kThreads) {
    float value = 0.0f;
    if (our_share != 0.0f && !call.is_first) value = our_share * out[column];
    if (their_share != 0.0f) value += their_share * Type::widen(part[column]);
    out[column] = value;
  }
  __syncthreads();  // all have read it
  if (threadIdx.x == 0) *lse = total == 0.0f ? minus_inf : base + logf(total);
}
