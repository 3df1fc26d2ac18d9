// Rows of x for quant.matmul: sorted by expert, gathered, and as signed bytes, as floats with zeros behind
// them or as the image that matmul_wgmma.cuh reads.
#include "matmul_quantise.cuh"

// Gathered rows of x as bytes, one after the other; see quantise_part.
template <int kBlock, bool kInterleaved, bool kSums, bool kStreamed>
__global__ void __launch_bounds__(256)
    quantise_rows(const void* __restrict__ x, const int* __restrict__ rows, const RowsOfX of,
                  const int* __restrict__ order, unsigned char* __restrict__ bytes,
                  float* __restrict__ scales, short* __restrict__ sums, int n_slots) {
  ptx::await_earlier_kernels();
  const int columns = of.columns;
  const unsigned parts = (columns + 255) / 256;
  const long long warp = blockIdx.x * 8ll + threadIdx.x / 32;
  const long long slot = warp / parts;
  if (slot >= n_slots) return;
  const int part = (int)(warp % parts);
  float values[8];
  long long row = row_of_slot(order, (int)slot);
  if (find_row(rows, of, row)) {
    load_part(typed_row(x, row, of.stride, of.type), of.type, part, columns, values);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = __uint_as_float(0x7fc00000u);
  }
  quantise_part<kBlock, kInterleaved, kSums, kStreamed>(
      values, part, columns,
      bytes + slot * (kStreamed ? streamed_pitch(columns) : columns), scales + slot * (columns / kBlock),
      sums + slot * (columns / 16));
}

__device__ __forceinline__ float load_1(const void* __restrict__ row, int index, int type) {
  if (type == kFloat32) return __ldg(static_cast<const float*>(row) + index);
  return widen_bits(__ldg(static_cast<const unsigned short*>(row) + index), type);
}

// Rows of `columns` values as rows of `out_columns`, zeros behind. A thread writes four.
template <bool kInterleaved>
__global__ void __launch_bounds__(256)
    gather_rows(const void* __restrict__ x, const int* __restrict__ rows, const RowsOfX of,
                const int* __restrict__ order, float* __restrict__ out, int out_columns, int n_slots) {
  ptx::await_earlier_kernels();
  const unsigned fours = out_columns / 4;
  const long long index = blockIdx.x * 256ll + threadIdx.x;
  const long long slot = index / fours;
  if (slot >= n_slots) return;
  const int first = (int)(index % fours) * 4;
  long long number = row_of_slot(order, (int)slot);
  const bool found = find_row(rows, of, number);
  const void* const row = typed_row(x, found ? number : 0, of.stride, of.type);
  float values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int place = first + i, in_block = place % 32;
    const int from = kInterleaved ? place - in_block + in_block % 2 * 16 + in_block / 2 : place;
    values[i] = from < of.columns ? load_1(row, from, of.type) : 0.0f;
    if (!found) values[i] = __uint_as_float(0x7fc00000u);
  }
  *reinterpret_cast<float4*>(out + slot * out_columns + first) =
      make_float4(values[0], values[1], values[2], values[3]);
}

// Rows of x as bfloat16, as they are to lie in shared memory (swizzled by 128 bytes, see wgmma.cuh): 64
// columns of all slots, then the next 64. A thread writes eight values. Zeros where there is no row (an
// order of -1, or slots from n_rows on without an order) and behind a row's end.
extern "C" __global__ void __launch_bounds__(256)
    tile_rows(const void* __restrict__ x, const int* __restrict__ rows, const RowsOfX of,
              const int* __restrict__ order, unsigned char* __restrict__ image, int n_rows, int n_slots) {
  ptx::await_earlier_kernels();
  const unsigned chunks = (of.columns + 63) / 64 * 8;
  const long long index = blockIdx.x * 256ll + threadIdx.x;
  const long long slot = index / chunks;
  if (slot >= n_slots) return;
  const int chunk = (int)(index % chunks), first = 8 * chunk;
  long long row = order ? __ldg(order + slot) : slot < n_rows ? slot
                                                              : -1;
  const bool used = row >= 0 && first < of.columns, found = used && find_row(rows, of, row);
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = used ? __uint_as_float(0x7fc00000u) : 0.0f;
  if (found) load_8(typed_row(x, row, of.stride, of.type), first, of.type, values);
  const long long line = chunk / 8 * (long long)n_slots + slot;
  ptx::store_16(image + line * 128 + (chunk ^ slot) % 8 * 16, Bfloat16::pack(values));
}

// Sorts n rows of x by the expert that each meets: order[slot] is a row, each expert's from a multiple of
// `multiple` slots on; slots of no row are -1 where multiple > 1, else 0. The table of groups of at most
// `width` rows gets most_groups entries, the last ones of no rows, and behind those how many have any. A row whose expert
// does not exist is in no group: its row of out becomes NaN here. One block.
template <class Id>
__global__ void __launch_bounds__(1024)
    sort_rows(const Id* __restrict__ experts, long long stride, int n, int n_experts, int* __restrict__ order,
              int n_slots, int* __restrict__ groups, int most_groups, int width, int multiple,
              void* __restrict__ out, long long out_stride, int out_columns, int out_type) {
  ptx::await_earlier_kernels();
  extern __shared__ __align__(16) int sort_shared[];
  int* const counts = sort_shared;           // of each expert; then its next slot
  int* const partial = counts + n_experts;   // two for each of the 32 warps
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto expert_of = [&](int row) {
    const long long id = (long long)experts[row * stride];
    return id >= 0 && id < n_experts ? (int)id : -1;
  };
  for (int i = threadIdx.x; i < n_experts; i += 1024) counts[i] = 0;
  for (int i = threadIdx.x; i < n_slots; i += 1024) order[i] = multiple > 1 ? -1 : 0;
  __syncthreads();
  for (int row = threadIdx.x; row < n; row += 1024) {
    const int expert = expert_of(row);
    if (expert >= 0) {
      atomicAdd(counts + expert, 1);
      continue;
    }
    for (int i = 0; i < out_columns; ++i)
      store_out(out, row * out_stride + i, __uint_as_float(0x7fc00000u), out_type);
  }
  __syncthreads();
  int slots_before = 0, groups_before = 0;
  for (int base = 0; base < n_experts; base += 1024) {
    const int expert = base + threadIdx.x;
    const int count = expert < n_experts ? counts[expert] : 0;
    const int n_own = (count + multiple - 1) / multiple * multiple, n_groups = (count + width - 1) / width;
    int slots = n_own, of_groups = n_groups;  // sums up to and with this expert
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, slots, i), more = __shfl_up_sync(0xffffffffu, of_groups, i);
      if (lane >= i) slots += other, of_groups += more;
    }
    if (lane == 31) partial[2 * warp] = slots, partial[2 * warp + 1] = of_groups;
    __syncthreads();
    int all_slots = 0, all_groups = 0;
    for (int i = 0; i < 32; ++i) {
      if (i == warp) slots += all_slots, of_groups += all_groups;
      all_slots += partial[2 * i], all_groups += partial[2 * i + 1];
    }
    const int first = slots_before + slots - n_own, first_group = groups_before + of_groups - n_groups;
    for (int i = 0; i < n_groups; ++i) {
      int* const group = groups + 3 * (first_group + i);
      group[0] = expert, group[1] = first + i * width, group[2] = min(width, count - i * width);
    }
    if (expert < n_experts) counts[expert] = first;
    slots_before += all_slots, groups_before += all_groups;
    __syncthreads();
  }
  for (int i = groups_before + threadIdx.x; i < most_groups; i += 1024)
    groups[3 * i] = 0, groups[3 * i + 1] = 1, groups[3 * i + 2] = 0;
  if (threadIdx.x == 0) groups[3 * most_groups] = groups_before;
  for (int row = threadIdx.x; row < n; row += 1024) {
    const int expert = expert_of(row);
    if (expert >= 0) order[atomicAdd(counts + expert, 1)] = row;
  }
}
