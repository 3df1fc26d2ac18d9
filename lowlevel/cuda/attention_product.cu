// Products of the tiles path of attention, in float32: scores = Q * K^T and sums += weights * V.
//
// Operands are read where they lie, in any of the float types and with any strides, and become float32
// on the way into shared memory. A block makes 128 x 128 values of C, a thread 8 x 8 of them.
#include "float_types.cuh"

// C[batch][m][n] = sum over k of A[batch][m][k] * B[batch][n][k]. Strides in elements. A's row m is row
// m % a_rows of part m / a_rows (a token of a head).
struct Product {
  long long a_batch, a_part, a_row, b_batch, b_n, b_k, c_batch, c_row;
  int n_batch, m, n, k, a_rows;
  int a_type, b_type;  // bytes of an element, and 1 more for bfloat16: 4, 2, 3
  int accumulate;      // add to C
  int clean;           // NaN and inf in B count as 0
};

constexpr int kTile = 128, kDepth = 16, kThreads = 256, kPart = 4, kParts = 2;  // 8 = 2 parts of 4

__device__ __forceinline__ float read_value(const void* array, long long index, int type) {
  if (type == 4) return static_cast<const float*>(array)[index];
  const unsigned short bits = static_cast<const unsigned short*>(array)[index];
  return type == 2 ? Float16::widen(bits) : Bfloat16::widen(bits);
}

__device__ __forceinline__ float finite_or_zero(float value) {
  return (__float_as_uint(value) & 0x7f800000u) == 0x7f800000u ? 0.0f : value;
}

// `along_k`: neighbouring k of B lie side by side (K); else neighbouring n do (V).
template <bool along_k>
__global__ void __launch_bounds__(kThreads)
attention_product(const void* __restrict__ a, const void* __restrict__ b, float* __restrict__ c,
                  const Product p) {
  __shared__ __align__(16) float a_tile[kDepth][kTile + 4], b_tile[kDepth][kTile + 4];
  const unsigned n_tiles = (p.n + kTile - 1) / kTile, m_tiles = (p.m + kTile - 1) / kTile;
  const int n0 = (int)(blockIdx.x % n_tiles) * kTile;
  const int m0 = (int)(blockIdx.x / n_tiles % m_tiles) * kTile;
  const long long batch = blockIdx.x / n_tiles / m_tiles;
  const int thread = threadIdx.x, row = thread / 16 * kPart, column = thread % 16 * kPart;

  float sums[2 * kPart][2 * kPart] = {};
  for (int k0 = 0; k0 < p.k; k0 += kDepth) {
    for (int i = thread; i < kTile * kDepth; i += kThreads) {
      const int k = i % kDepth, m = i / kDepth;
      float value = 0.0f;
      if (m0 + m < p.m && k0 + k < p.k) {
        const int part = (m0 + m) / p.a_rows, in_part = (m0 + m) - part * p.a_rows;
        value = read_value(a, batch * p.a_batch + part * p.a_part + in_part * p.a_row + k0 + k, p.a_type);
      }
      a_tile[k][m] = value;
    }
    for (int i = thread; i < kTile * kDepth; i += kThreads) {
      const int k = along_k ? i % kDepth : i / kTile, n = along_k ? i / kDepth : i % kTile;
      float value = 0.0f;
      if (n0 + n < p.n && k0 + k < p.k) {
        value = read_value(b, batch * p.b_batch + (n0 + n) * p.b_n + (k0 + k) * p.b_k, p.b_type);
        if (p.clean) value = finite_or_zero(value);
      }
      b_tile[k][n] = value;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float x[2 * kPart], y[2 * kPart];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        *reinterpret_cast<float4*>(x + part * kPart) = *reinterpret_cast<const float4*>(&a_tile[k][part * kTile / 2 + row]);
        *reinterpret_cast<float4*>(y + part * kPart) = *reinterpret_cast<const float4*>(&b_tile[k][part * kTile / 2 + column]);
      }
#pragma unroll
      for (int i = 0; i < 2 * kPart; ++i)
#pragma unroll
        for (int j = 0; j < 2 * kPart; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2 * kPart; ++i)
#pragma unroll
    for (int j = 0; j < 2 * kPart; ++j) {
      const int m = m0 + i / kPart * (kTile / 2) + row + i % kPart;
      const int n = n0 + j / kPart * (kTile / 2) + column + j % kPart;
      if (m >= p.m || n >= p.n) continue;
      float* const target = c + batch * p.c_batch + m * p.c_row + n;
      *target = p.accumulate ? *target + sums[i][j] : sums[i][j];
    }
}
