// Choosing experts: a warp has a token, whose scores lie in shared memory.
#include "rows.cuh"

constexpr int kRoutingThreads = 128;
constexpr int kTokens = kRoutingThreads / 32;  // of a block
constexpr int kExperts = 1024;                 // at most

enum Gating {
  kSoftmax = 0,
  kSigmoid = 1,
  kSoftmaxSelected = 2,
  kSqrtSoftplus = 3
};

struct RoutingCall {
  long long logits_row, ids_row, weights_row;  // strides in items
  int n_tokens, n_expert, n_used;
  int gating, n_group, n_group_used, normalise;
  float scale;
};

constexpr float kLowest = -3.402823466e38f;
__device__ __forceinline__ float taken() { return __uint_as_float(0xff800000u); }  // -inf

__device__ __forceinline__ float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}
__device__ __forceinline__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

struct Best {
  float score;
  int index;
};

// The warp's best, the lowest index of equals.
__device__ __forceinline__ Best warp_best(Best best) {
  for (int step = 16; step > 0; step /= 2) {
    const float score = __shfl_xor_sync(0xffffffffu, best.score, step);
    const int index = __shfl_xor_sync(0xffffffffu, best.index, step);
    if (score > best.score || (score == best.score && index < best.index)) best = {score, index};
  }
  return best;
}

// exp(logit - top); 0 for -inf.
__device__ __forceinline__ float exp_below(float logit, float top) {
  return logit == taken() ? 0.0f : expf(logit - top);
}

__device__ __forceinline__ float weight_of(int gating, float logit, float top, float total) {
  if (gating == kSigmoid) return sigmoid(logit);
  if (gating == kSqrtSoftplus) {
    const float positive = logit < 0.0f ? 0.0f : logit;  // a NaN stays
    return sqrtf(positive + log1pf(expf(-fabsf(logit))));
  }
  return __fdiv_rn(exp_below(logit, top), total);
}

// All experts are taken but those of the best groups; lane g has group g.
__device__ __forceinline__ void keep_groups(float* scores, const RoutingCall& call) {
  const int lane = threadIdx.x % 32, size = call.n_expert / call.n_group;
  float first = taken(), second = taken();
  if (lane < call.n_group) {
    for (int i = lane * size; i < (lane + 1) * size; ++i) {
      const float score = scores[i];
      if (score > first) second = first, first = score;
      else if (score > second) second = score;
    }
  }
  float of_group = lane < call.n_group ? fmaxf(first + second, kLowest) : taken();
  bool kept = false;
  for (int i = 0; i < call.n_group_used; ++i) {
    if (warp_best({of_group, lane}).index == lane) kept = true, of_group = taken();
  }
  const unsigned keep = __ballot_sync(0xffffffffu, kept);
  __syncwarp();
  for (int i = lane; i < call.n_expert; i += 32)
    if (!(keep >> (i / size) & 1)) scores[i] = taken();
  __syncwarp();
}

template <class Type>
__global__ void __launch_bounds__(kRoutingThreads)
    route(const typename Type::Bits* __restrict__ logits, const float* __restrict__ bias, int* __restrict__ ids,
          float* __restrict__ weights, const RoutingCall call) {
  ptx::await_earlier_kernels();
  __shared__ float of_block[kTokens][kExperts];
  float* const scores = of_block[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  const long long token = (long long)blockIdx.x * kTokens + threadIdx.x / 32;
  if (token >= call.n_tokens) return;  // a whole warp
  logits += token * call.logits_row;

  float top = taken(), total = 0.0f;
  for (int i = lane; i < call.n_expert; i += 32) top = fmaxf(top, Type::widen(logits[i]));
  top = warp_max(top);
  for (int i = lane; i < call.n_expert; i += 32) total += exp_below(Type::widen(logits[i]), top);
  total = warp_sum(total);

  const bool by_logits = call.gating == kSoftmaxSelected || (bias == nullptr && call.n_group == 1);
  for (int i = lane; i < call.n_expert; i += 32) {
    const float logit = Type::widen(logits[i]);
    float score = by_logits ? logit : weight_of(call.gating, logit, top, total);
    if (bias != nullptr) score = __fadd_rn(score, bias[i]);
    scores[i] = score > kLowest ? score : kLowest;  // -inf and NaN, too
  }
  __syncwarp();
  if (call.n_group > 1) keep_groups(scores, call);

  int chosen = 0;  // of this lane's place
  for (int place = 0; place < call.n_used; ++place) {
    Best best = {taken(), kExperts};
    for (int i = lane; i < call.n_expert; i += 32)
      if (scores[i] > best.score) best = {scores[i], i};
    best = warp_best(best);
    if (lane == place) chosen = best.index;
    if (best.index % 32 == lane) scores[best.index] = taken();
  }

  const bool used = lane < call.n_used;
  float weight = used ? Type::widen(logits[chosen]) : taken();
  if (call.gating == kSoftmaxSelected) {
    top = warp_max(weight);
    total = warp_sum(exp_below(weight, top));
  }
  weight = weight_of(call.gating, weight, top, total);
  if (call.normalise) {
    const float sum = warp_sum(used ? weight : 0.0f);
    weight = __fdiv_rn(weight, sum < 6.103515625e-5f ? 6.103515625e-5f : sum);
  }
  if (used) {
    ids[token * call.ids_row + lane] = chosen;
    weights[token * call.weights_row + lane] = __fmul_rn(weight, call.scale);
  }
}
