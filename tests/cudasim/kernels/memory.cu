// Global memory: y = scale * x, four elements a thread, in one block of 64 threads.
//
// Planted bugs: one of BUG_READ_PAST, BUG_READ_BEFORE, BUG_WRITE_PAST, BUG_WRITE_BEFORE, BUG_FAR,
// BUG_CONST, BUG_READ_OUTPUT, BUG_MISALIGNED, BUG_NULL, BUG_SPIN, BUG_TRAP, BUG_RECURSE, BUG_DIVIDE,
// BUG_SHIFT, BUG_WILD_CALL, BUG_ASSERT.

#ifdef BUG_RECURSE
__device__ __noinline__ int descend(volatile int* x, int n) {
  volatile int room[64];
  room[n % 64] = *x;
  return n == 0 ? 0 : descend(room, n - 1) + room[n % 64];
}
#endif

extern "C" __global__ void scale(const float* __restrict__ x, float* __restrict__ y, int n, float factor) {
  const int first = 4 * threadIdx.x;
  if (first < n) {
#ifdef BUG_MISALIGNED
    const float4 v = *reinterpret_cast<const float4*>(x + first + (threadIdx.x == 3));
#else
    const float4 v = *reinterpret_cast<const float4*>(x + first);
#endif
    *reinterpret_cast<float4*>(y + first) = make_float4(factor * v.x, factor * v.y, factor * v.z, factor * v.w);
  }
  const bool is_last = threadIdx.x == blockDim.x - 1;
#ifdef BUG_READ_PAST
  if (is_last && x[n] == 0.5f) __trap();
#endif
#ifdef BUG_READ_BEFORE
  if (is_last && x[-1] == 0.5f) __trap();
#endif
#ifdef BUG_WRITE_PAST
  if (is_last) y[n] = 1;
#endif
#ifdef BUG_WRITE_BEFORE
  if (is_last) y[-1] = 1;
#endif
#ifdef BUG_FAR
  if (is_last) y[1 << 24] = 1;
#endif
#ifdef BUG_CONST
  if (is_last) const_cast<float*>(x)[2] = 1;
#endif
#ifdef BUG_READ_OUTPUT
  if (is_last) y[n + 1] = y[n] + 1;  // the array goes on, but nobody has written y[n]
#endif
#ifdef BUG_NULL
  if (is_last) y[0] = *(const float*)(threadIdx.y + 8);
#endif
#ifdef BUG_SPIN
  if (is_last)
    while (*(volatile float*)y != -1.0f) {
    }
#endif
#ifdef BUG_TRAP
  if (is_last) __trap();
#endif
#ifdef BUG_ASSERT
  assert(factor != 2.0f);
#endif
#ifdef BUG_RECURSE
  int start = n;
  if (is_last) y[0] = descend(&start, 1 << 20);
#endif
#ifdef BUG_DIVIDE
  if (is_last) y[0] = n / threadIdx.y;
#endif
#ifdef BUG_SHIFT
  if (is_last) y[0] = 1 << (n + 100);
#endif
#ifdef BUG_WILD_CALL
  if (is_last) ((void (*)())(size_t)(n * 1000))();
#endif
}
