// Rows of x for quant.matmul: gathered (expert by expert), and as signed bytes or as floats with zeros
// behind them.
#include "matmul_quantise.cuh"

// Gathered rows of x as bytes, one after the other; see quantise_part.
template <int kBlock, bool kInterleaved, bool kStreamed>
__global__ void __launch_bounds__(256)
    quantise_rows(const float* __restrict__ x, long long x_stride, const int* __restrict__ order,
                  unsigned char* __restrict__ bytes, float* __restrict__ scales,
                  short* __restrict__ sums, int columns, int n_slots) {
  const unsigned parts = (columns + 255) / 256;
  const long long warp = blockIdx.x * 8ll + threadIdx.x / 32;
  const long long slot = warp / parts;
  if (slot >= n_slots) return;
  const int part = (int)(warp % parts);
  float values[8];
  load_part(x + row_of_slot(order, (int)slot) * x_stride, part, columns, values);
  quantise_part<kBlock, kInterleaved, kStreamed>(
      values, part, columns,
      bytes + slot * (kStreamed ? streamed_pitch(columns) : columns), scales + slot * (columns / kBlock),
      sums + slot * (columns / 16));
}

// Rows of `columns` values as rows of `out_columns`, zeros behind. A thread writes four.
template <bool kInterleaved>
__global__ void __launch_bounds__(256)
    gather_rows(const float* __restrict__ x, long long x_stride, const int* __restrict__ order,
                float* __restrict__ out, int columns, int out_columns, int n_slots) {
  const unsigned fours = out_columns / 4;
  const long long index = blockIdx.x * 256ll + threadIdx.x;
  const long long slot = index / fours;
  if (slot >= n_slots) return;
  const int first = (int)(index % fours) * 4;
  const float* const row = x + row_of_slot(order, (int)slot) * x_stride;
  float values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int place = first + i, in_block = place % 32;
    const int from = kInterleaved ? place - in_block + in_block % 2 * 16 + in_block / 2 : place;
    values[i] = from < columns ? __ldg(row + from) : 0.0f;
  }
  *reinterpret_cast<float4*>(out + slot * out_columns + first) =
      make_float4(values[0], values[1], values[2], values[3]);
}
