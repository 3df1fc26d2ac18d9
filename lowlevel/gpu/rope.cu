// Rotary position embedding in place: a thread has a pair of a token, in some heads. The same operations in the same order as on the
// CPU (lowlevel/cpu/ops/rope.py), so that float32 gives the same bits.
#include "float_types.cuh"
#include "ptx.cuh"

constexpr int kThreads = 256;

struct RopeCall {
  long long head, token, item;  // strides in items
  long long position_step;
  int n_heads, n_tokens, n_pairs;
  int thread_heads;  // heads of a thread
  int pair_items;    // from the first item of a pair to that of the next
  int second_items;  // from a pair's first item to its second
  float magnitude;
  int unused;
};

struct Rotation {
  float sine, cosine;
};

// Of an angle in 2**-32 turns: first the quarter of a turn, then what is left of it (Cephes sinf and cosf).
__device__ __forceinline__ Rotation rotation(unsigned turns) {
  const unsigned quarter = (turns + 0x20000000u) >> 30;
  const float angle = __fmul_rn(__int2float_rn((int)(turns - (quarter << 30))), 1.4629180792671596e-9f);
  const float square = __fmul_rn(angle, angle);
  float s = __fmaf_rn(-1.9515295891e-4f, square, 8.3321608736e-3f);
  s = __fmaf_rn(s, square, -1.6666654611e-1f);
  s = __fmaf_rn(__fmul_rn(s, square), angle, angle);
  float c = __fmaf_rn(2.443315711809948e-5f, square, -1.388731625493765e-3f);
  c = __fmaf_rn(c, square, 4.166664568298827e-2f);
  c = __fmaf_rn(__fmul_rn(c, square), square, __fmaf_rn(square, -0.5f, 1.0f));
  const float sine = quarter & 1 ? c : s, cosine = quarter & 1 ? s : c;
  return {quarter & 2 ? -sine : sine, (quarter + 1) & 2 ? -cosine : cosine};
}

template <class Type>
__global__ void __launch_bounds__(kThreads)
    rope(typename Type::Bits* x, const int* __restrict__ positions, const unsigned long long* __restrict__ turns,
         const RopeCall call) {
  ptx::await_earlier_kernels();
  const long long index = (long long)blockIdx.x * kThreads + threadIdx.x;
  const int pair = (int)(index % call.n_pairs);
  const long long rest = index / call.n_pairs;
  const int token = (int)(rest % call.n_tokens);
  const long long first = rest / call.n_tokens * call.thread_heads;
  if (first >= call.n_heads) return;

  const unsigned long long angle = turns[pair] * (unsigned long long)(long long)positions[token * call.position_step];
  const Rotation turn = rotation((unsigned)(angle >> 32));
  const float sine = __fmul_rn(turn.sine, call.magnitude), cosine = __fmul_rn(turn.cosine, call.magnitude);
  x += token * call.token + (long long)pair * call.pair_items * call.item;
  const long long second = call.second_items * call.item;
  const int last = min((int)first + call.thread_heads, call.n_heads);
  for (int head = (int)first; head < last; ++head) {
    typename Type::Bits* const at = x + head * call.head;
    const float a = Type::widen(at[0]), b = Type::widen(at[second]);
    at[0] = Type::narrow(__fmaf_rn(a, cosine, -__fmul_rn(b, sine)));
    at[second] = Type::narrow(__fmaf_rn(a, sine, __fmul_rn(b, cosine)));
  }
}
