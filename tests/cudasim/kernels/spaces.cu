// Variables and attributes where CUDA allows them: shared memory and device variables at file scope, attributes on
// either side of __global__, structures by value. The tests say which element to touch, also wrong ones.
#include <cuda_fp16.h>

extern __shared__ float whole[];
namespace inner {
extern __shared__ double doubles[];
__device__ unsigned counter = 5;
static __device__ int table[3] = {1, 2, 3}, other;
__device__ float2 pair{1.0f, 2.0f};
__device__ const float halves[2] = {0.5f, 0.25f};
__managed__ volatile int flag;
template <int n>
struct Counted {
  int values[n];
};
__device__ Counted<(4 > 3 ? 4 : 2)> counted;
}  // namespace inner
__device__ int* pointer = nullptr;
__device__ __align__(16) float aligned[5];
__device__ const char *text = "a;b{", *more = "c,d";
__device__ __forceinline__ bool operator==(float2 a, float2 b) { return a.x == b.x; }

__device__ float neighbour() { return whole[(threadIdx.x + 1) % blockDim.x]; }

extern "C" __launch_bounds__(64) __cluster_dims__(2, 1, 1) __global__ void rotate(float* y) {
  whole[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[blockIdx.x * blockDim.x + threadIdx.x] = neighbour() + inner::halves[1] + inner::pair.y;
}

extern "C" __maxnreg__(32) __global__ void dynamic_element(int i, float* y) {
  if (threadIdx.x == 0) y[0] = whole[i] = 1;
}

extern "C" __global__ void count(unsigned* y) {
  if (threadIdx.x == 0) y[blockIdx.x] = atomicAdd(&inner::counter, 1u);
}
extern "C" __global__ void keep(int value, int* y) {
  y[0] = inner::other;
  y[1] = sizeof(inner::counted) + inner::flag;
  y[2] = pointer == nullptr && (size_t)aligned % 16 == 0 && text[3] == '{' && more[2] == 'd';
  inner::other = inner::table[1] = value;
}
extern "C" __global__ void table_element(int i) { inner::table[i] += 1; }

struct alignas(64) Map {
  int values[16];
};
extern "C" __global__ void by_value(const __grid_constant__ Map map, char, int* y) {
  Map copy = map;
  y[0] = copy.values[threadIdx.x + 3];
}

extern "C" __global__ void add_one(float* x, int i) { x[i] += 1; }
extern "C" __global__ void add_one_double(double* x, int i) { x[i] += 1; }
extern "C" __global__ void add_one_half(__half* x, int i) { x[i] += __half(1.0f); }
extern "C" __global__ void is_positive(const int* x, int i, int* y) { y[0] = x[i] > 0; }
extern "C" __global__ void vectors(const float* x, float* y, int n) {
  if (4 * threadIdx.x + 4 <= n)
    reinterpret_cast<float4*>(y)[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
}
