// C (m, n) float32 = A (m, k) * B (k, n), float16: 64 x 64 tiles, 4 warps, two stages of cp.async,
// ldmatrix, mma.sync. m and n multiples of 64, k of 32.
//
// Planted bugs: BUG_WAIT waits for too few groups, BUG_BARRIER refills a stage that others still read.
#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int kTile = 64, kDepth = 32, kThreads = 128;
constexpr int kRowA = kDepth + 8, kRowB = kTile + 8;  // padded against bank conflicts

extern "C" __global__ void __launch_bounds__(kThreads)
    gemm_mma(const __half* __restrict__ a, const __half* __restrict__ b, float* __restrict__ c, int n, int k) {
  extern __shared__ __align__(16) __half stages[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
  const int row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  __half* stage_a[2] = {stages, stages + kTile * kRowA};
  __half* stage_b[2] = {stages + 2 * kTile * kRowA, stages + 2 * kTile * kRowA + kDepth * kRowB};
  float sums[2][4][4] = {};

  auto load = [&](int stage, int k0) {
    for (int i = threadIdx.x; i < kTile * kDepth / 8; i += kThreads) {
      const int row = i / (kDepth / 8), column = i % (kDepth / 8) * 8;
      ptx::cp_async_16(stage_a[stage] + row * kRowA + column, a + (size_t)(row0 + row) * k + k0 + column);
    }
    for (int i = threadIdx.x; i < kDepth * kTile / 8; i += kThreads) {
      const int row = i / (kTile / 8), column = i % (kTile / 8) * 8;
      ptx::cp_async_16(stage_b[stage] + row * kRowB + column, b + (size_t)(k0 + row) * n + column0 + column);
    }
    ptx::cp_async_commit();
  };

  load(0, 0);
  for (int k0 = 0, stage = 0; k0 < k; k0 += kDepth, stage ^= 1) {
    if (k0 + kDepth < k) {
      load(stage ^ 1, k0 + kDepth);
#ifdef BUG_WAIT
      ptx::cp_async_wait<2>();
#else
      ptx::cp_async_wait<1>();
#endif
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();
    for (int kk = 0; kk < kDepth; kk += 16) {
      unsigned a_registers[2][4], b_registers[2][4];
      for (int i = 0; i < 2; ++i)
        ptx::ldmatrix_x4(a_registers[i],
                         stage_a[stage] + (warp_row + 16 * i + lane % 16) * kRowA + kk + lane / 16 * 8);
      for (int j = 0; j < 2; ++j)
        ptx::ldmatrix_x4_trans(b_registers[j],
                               stage_b[stage] + (kk + lane % 16) * kRowB + warp_column + 16 * j + lane / 16 * 8);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
          ptx::mma_m16n8k16_f16(sums[i][j], a_registers[i], b_registers[j / 2][j % 2 * 2],
                                b_registers[j / 2][j % 2 * 2 + 1]);
    }
#ifndef BUG_BARRIER
    __syncthreads();
#endif
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j) {
      const int row = row0 + warp_row + 16 * i + lane / 4, column = column0 + warp_column + 8 * j + lane % 4 * 2;
      *reinterpret_cast<float2*>(c + (size_t)row * n + column) = make_float2(sums[i][j][0], sums[i][j][1]);
      *reinterpret_cast<float2*>(c + (size_t)(row + 8) * n + column) = make_float2(sums[i][j][2], sums[i][j][3]);
    }
}
