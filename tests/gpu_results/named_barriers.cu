// What compute-sanitizer's racecheck makes of the PTX manual's producer and consumer, which hand a box over by bar.arrive
// and bar.sync: with an argument it arrives, without one it waits, and nothing else differs.
//   nvcc -arch=sm_90 -lineinfo -o /tmp/named named_barriers.cu
//   for how in "" arrive; do compute-sanitizer --tool racecheck /tmp/named $how; done
#include <cstdio>

__device__ void arrive(int barrier) { asm volatile("bar.arrive %0, 64;" ::"r"(barrier) : "memory"); }
__device__ void sync(int barrier) { asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory"); }

constexpr int kEmpty = 1, kFull = 2;

template <bool ARRIVES>
__global__ void hand_over(int* out) {
  __shared__ int box[32];
  const int lane = threadIdx.x % 32;
  auto tell = [](int barrier) { ARRIVES ? arrive(barrier) : sync(barrier); };
  for (int i = 0; i < 4; ++i) {
    if (threadIdx.x < 32) {
      sync(kEmpty);
      box[lane] = i * 32 + lane;
      tell(kFull);
    } else {
      tell(kEmpty);
      sync(kFull);
      out[i * 32 + lane] = box[31 - lane];
    }
  }
}

int main(int argc, char**) {
  int *out, host[128], wrong = 0;
  cudaMalloc(&out, sizeof host);
  if (argc > 1)
    hand_over<true><<<1, 64>>>(out);
  else
    hand_over<false><<<1, 64>>>(out);
  cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost);
  for (int i = 0; i < 128; ++i) wrong += host[i] != i / 32 * 32 + 31 - i % 32;
  printf("%d wrong\n", wrong);
}
