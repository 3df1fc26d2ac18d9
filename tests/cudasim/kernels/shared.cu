// Shared memory: reverses each row of 64 through static and dynamic shared memory, one block a row.
//
// Planted bugs: BUG_STATIC_PAST, BUG_STATIC_BEFORE, BUG_DYNAMIC_PAST, BUG_DYNAMIC_BEFORE, BUG_INNER,
// BUG_UNSET, BUG_UNSET_DYNAMIC, BUG_RACE, BUG_WARP_RACE.

template <int N>
struct Pair {
  float values[2][N];
};

extern "C" __global__ void __launch_bounds__(64)
    reverse_rows(const float* __restrict__ x, float* __restrict__ y) {
  constexpr int n = 64;
  __shared__ float tile[n], *nothing, warp_tile[2][32];
  __shared__ __align__(32) Pair<n> pair;
  extern __shared__ float staged[];
  (void)nothing;
  const int t = threadIdx.x, lane = t % 32;
  const float* row = x + blockIdx.x * n;
  float* out = y + blockIdx.x * n;

#ifdef BUG_UNSET
  if (t != 5)
#endif
    tile[t] = row[t];
#ifdef BUG_STATIC_PAST
  if (t == 9) tile[n] = 1;
#endif
#ifdef BUG_STATIC_BEFORE
  if (t == 9) tile[t - 10] = 1;
#endif
#ifndef BUG_RACE
  __syncthreads();
#endif
  const float reversed = tile[n - 1 - t];

#ifdef BUG_UNSET_DYNAMIC
  if (t != 5)
#endif
    staged[t] = reversed;
#ifdef BUG_DYNAMIC_PAST
  if (t == 9) staged[n] = 1;
#endif
#ifdef BUG_DYNAMIC_BEFORE
  if (t == 9) staged[t - 10] = 1;
#endif

  // Each warp reverses its half and back.
  warp_tile[t / 32][lane] = reversed;
#ifndef BUG_WARP_RACE
  __syncwarp();
#endif
  const float twisted = warp_tile[t / 32][31 - lane];
  __syncthreads();
#ifdef BUG_INNER
  pair.values[0][t + 1] = twisted;
  pair.values[1][t] = twisted;
#else
  pair.values[0][t] = twisted;
  pair.values[1][t] = twisted;
#endif
  __syncthreads();
  const float back = pair.values[t & 1][t / 32 * 32 + 31 - lane];
  out[t] = back == staged[t] ? staged[t] : __int_as_float(0x7fffffff);
}

// A histogram with atomics: no race. BUG_PLAIN: an update that is none.
extern "C" __global__ void histogram(const int* __restrict__ x, int* __restrict__ counts, int n) {
  __shared__ int local[16];
  if (threadIdx.x < 16) local[threadIdx.x] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicAdd(&local[x[i] & 15], 1);
  __syncthreads();
  if (threadIdx.x < 16) {
#ifdef BUG_PLAIN
    counts[threadIdx.x] += local[threadIdx.x];
#else
    atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
#endif
  }
}
