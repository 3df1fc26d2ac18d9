// Many rows of x on Hopper's warpgroup products (sm_90a): weights become bfloat16 in shared memory, as
// dequantisation to bfloat16 gives them, and meet x as bfloat16; sums are float32.
//
// A block stays on its multiprocessor and makes tiles of kTileRows rows of weights times kColumns rows of
// x, one after another. Its last two warpgroups multiply, 64 rows of weights each. The others bring 64
// columns at a time into one of kWgmmaStages places: x is copied as it lies in the image that tile_rows
// (matmul_x.cu) made of it, weights are decoded from raw blocks, which come 256 weights of each row at a
// time and one such chunk ahead.
//
// Operands are K-major and swizzled by 128 bytes, see wgmma.cuh: a line is 64 values of a row.
#pragma once
#include "dequantize.cuh"
#include "matmul_call.cuh"
#include "wgmma.cuh"

constexpr int kWarpgroup = 128, kConsumers = 2 * kWarpgroup;
constexpr int kTileRows = 128, kStep = 64, kChunk = 256;  // rows of weights; columns
constexpr int kLine = 2 * kStep, kEightLines = 8 * kLine;  // bytes

// Named barriers. What is ready is told to each multiplying warpgroup on its own: they need not keep step.
constexpr int kWgmmaStages = 3;
constexpr int kRawReady = 1, kReady = 2, kFree = kReady + 2 * kWgmmaStages;
static_assert(kFree + kWgmmaStages <= 16, "named barriers");

template <class Format, int kThreads, int kColumns>
struct WgmmaTile {
  static constexpr int kProducers = kThreads - kConsumers;
  static constexpr int kRawBytes = kChunk / Format::kBlockWeights * Format::kBlockBytes;
  static constexpr int kPieces = (kRawBytes + 30) / 16;
  static constexpr int kRawPitch = 16 * (kPieces | 1);  // odd: neighbouring rows lie in different banks
  static constexpr int kWeightBytes = kTileRows * kLine, kXBytes = kColumns * kLine;
  static constexpr int kStageBytes = kWeightBytes + kXBytes;
  static constexpr int kRawBuffer = kTileRows * kRawPitch;
  static constexpr int kSharedBytes = kWgmmaStages * kStageBytes + 2 * kRawBuffer;
};

// One tile: rows of one matrix, slots of x.
struct WgmmaPlace {
  const unsigned char* rows;  // the first one
  long long first_out;        // its place in a row of out
  int n_rows, first_slot, count;
  bool whole;  // rows come in pieces
};

// With groups the row tiles of a group follow each other, so that its x stays in the second-level cache;
// without, all of x does, and the tiles that share weights follow each other.
template <int kColumns>
__device__ __forceinline__ WgmmaPlace wgmma_place(const unsigned char* __restrict__ weights,
                                                  const unsigned char* __restrict__ more_weights,
                                                  const int* __restrict__ groups, const MatmulCall& call,
                                                  int tile, int n_groups, int row_tiles) {
  const int matrix_tiles = more_weights ? row_tiles / 2 : row_tiles;
  int row_tile = groups ? tile % row_tiles : tile / n_groups;
  const Group group = read_group(groups, call, groups ? tile / row_tiles : tile % n_groups, kColumns);
  const bool more = row_tile >= matrix_tiles;
  if (more) row_tile -= matrix_tiles;
  const int first_row = row_tile * kTileRows;
  WgmmaPlace place;
  place.rows = (more ? more_weights : weights) + group.expert * call.expert_stride +
               (long long)first_row * call.row_stride;
  place.first_out = first_row + (more ? call.n_rows : 0);
  place.n_rows = min(kTileRows, call.n_rows - first_row);
  place.first_slot = group.first, place.count = group.count;
  place.whole = copies_pieces(call, row_tile, matrix_tiles);
  return place;
}

// Starts copying a chunk of the rows' blocks.
template <class T>
__device__ __forceinline__ void copy_raw(unsigned char* raw, const WgmmaPlace& place, const MatmulCall& call,
                                         int chunk) {
  const int begin = chunk * T::kRawBytes, n_bytes = min(T::kRawBytes, call.row_bytes - begin);
#pragma unroll 2
  for (int i = threadIdx.x; i < kTileRows * T::kPieces; i += T::kProducers) {
    const int row = i / T::kPieces, piece = i % T::kPieces;
    if (row >= place.n_rows) break;
    const unsigned char* const from = place.rows + ((long long)row * call.row_stride + begin);
    const int skew = skew_of(from, place.whole);
    copy_piece(raw + row * T::kRawPitch + 16 * piece, from + (16 * piece - skew), n_bytes + skew - 16 * piece,
               place.whole);
  }
}

// Starts copying the part of x that a step needs.
template <class T>
__device__ __forceinline__ void copy_x(unsigned char* to, const unsigned char* __restrict__ image,
                                       const WgmmaPlace& place, const MatmulCall& call, int step) {
  const long long line = (long long)step * call.image_slots + place.first_slot;
  const unsigned char* const from = image + line * kLine + 16 * threadIdx.x;
  const ptx::SharedPlace target = ptx::shared_place(to + 16 * threadIdx.x);
#pragma unroll
  for (int i = 0; i < T::kXBytes / (16 * T::kProducers); ++i)
    ptx::cp_async_16(target + 16 * T::kProducers * i, from + 16 * T::kProducers * i);
}

// Decodes a step's weights: 32 of a row at a time. Everything beyond the matrix is zeros.
template <class Format, class T>
__device__ __forceinline__ void decode_weights(unsigned char* to, const unsigned char* raw, const WgmmaPlace& place,
                                               const MatmulCall& call, int step) {
  const int half = threadIdx.x % 2;
  const int in_chunk = step % (kChunk / kStep) * kStep + 32 * half;
  const int block = in_chunk / Format::kBlockWeights, index = in_chunk % Format::kBlockWeights;
  const unsigned begin = (unsigned)(step / (kChunk / kStep)) * T::kRawBytes;
  const bool inside = step * kStep + 32 * half < call.columns;
#pragma unroll
  for (int row = threadIdx.x / 2; row < kTileRows; row += T::kProducers / 2) {
    uint4 packed[4];
    if (inside && row < place.n_rows) {
      const unsigned start = (unsigned)(size_t)place.rows + row * (unsigned)call.row_stride + begin;
      const int skew = place.whole ? start & 15 : 0;
      const Bytes<Format::kAlignment> bytes = {raw + row * T::kRawPitch + skew + block * Format::kBlockBytes};
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        float weights[16];
        Format::template decode<16>(bytes, index + 16 * part, weights);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          unsigned words[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            words[j] = floats::to_bfloats(weights[8 * i + 2 * j], weights[8 * i + 2 * j + 1]);
          packed[2 * part + i] = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) packed[i] = make_uint4(0, 0, 0, 0);
    }
    unsigned char* const line = to + row * kLine;
#pragma unroll
    for (int i = 0; i < 4; ++i) *reinterpret_cast<uint4*>(line + ((4 * half + i) ^ (row & 7)) * 16) = packed[i];
  }
}

// Writes a warpgroup's 64 rows of a tile.
template <class Out, int kColumns>
__device__ __forceinline__ void write_tile(const float (&sums)[kColumns / 8][4], typename Out::Bits* __restrict__ out,
                                           const int* __restrict__ order, const MatmulCall& call,
                                           const WgmmaPlace& place, int row) {
  const int first = threadIdx.x % 4 * 2;
  out += place.first_out + row;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
    if (8 * n >= place.count) break;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 8 * n + first + i;
      if (column >= place.count) continue;
      typename Out::Bits* const to = out + row_of_slot(order, place.first_slot + column) * call.out_stride;
      if (row < place.n_rows) to[0] = Out::narrow(sums[n][i]);
      if (row + 8 < place.n_rows) to[8] = Out::narrow(sums[n][2 + i]);
    }
  }
}

template <class Format, int kThreads, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_wgmma(const unsigned char* __restrict__ weights, const unsigned char* __restrict__ more_weights,
                 const unsigned char* __restrict__ x_image, void* __restrict__ out,
                 const int* __restrict__ order, const int* __restrict__ groups, const MatmulCall call) {
  using T = WgmmaTile<Format, kThreads, kColumns>;
  constexpr int kProducers = T::kProducers;
  extern __shared__ __align__(1024) unsigned char wgmma_shared[];
  unsigned char* const stages = wgmma_shared;
  unsigned char* const raw = stages + kWgmmaStages * T::kStageBytes;
  const int n_groups = count_groups(groups, call);
  const int row_tiles = (call.n_rows + kTileRows - 1) / kTileRows * (more_weights ? 2 : 1);
  const int n_tiles = n_groups * row_tiles, n_steps = (call.columns + kStep - 1) / kStep;
  // The same in all lanes, as far as the compiler can see too.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);
  auto place_of = [&](int tile) {
    return wgmma_place<kColumns>(weights, more_weights, groups, call, tile, n_groups, row_tiles);
  };

  if (warpgroup < kProducers / kWarpgroup) {
    if constexpr (kThreads == 384) ptx::fewer_registers<128>();
    int tile = blockIdx.x;
    if (tile >= n_tiles) return;
    WgmmaPlace place = place_of(tile);
    copy_raw<T>(raw, place, call, 0);
    copy_x<T>(stages + T::kWeightBytes, x_image, place, call, 0);
    ptx::cp_async_commit();
    int stage = 0, raw_buffer = 0, n_made = 0;
    while (true) {
      const int next_tile = tile + gridDim.x;
      const bool has_next = next_tile < n_tiles;
      const WgmmaPlace next = has_next ? place_of(next_tile) : place;
#pragma unroll 1
      for (int step = 0; step < n_steps; ++step, ++n_made) {
        const int next_stage = stage + 1 == kWgmmaStages ? 0 : stage + 1;
        const bool last = step + 1 == n_steps;
        if (step % (kChunk / kStep) == 0) {
          ptx::cp_async_wait<0>();
          ptx::named_barrier_sync(kRawReady, kProducers);  // and nobody reads the other buffer any more
          const int chunk = step / (kChunk / kStep) + 1;
          unsigned char* const to = raw + (raw_buffer ^ 1) * T::kRawBuffer;
          if (chunk * kChunk < call.columns) copy_raw<T>(to, place, call, chunk);
          else if (has_next) copy_raw<T>(to, next, call, 0);
        }
        if (!last || has_next) {
          if (n_made + 1 >= kWgmmaStages) ptx::named_barrier_sync(kFree + next_stage, kThreads);
          copy_x<T>(stages + next_stage * T::kStageBytes + T::kWeightBytes, x_image, last ? next : place, call,
                           last ? 0 : step + 1);
        }
        ptx::cp_async_commit();
        decode_weights<Format, T>(stages + stage * T::kStageBytes, raw + raw_buffer * T::kRawBuffer, place,
                                         call, step);
        ptx::cp_async_wait<1>();
        ptx::fence_proxy_async();
#pragma unroll
        for (int consumer = 0; consumer < 2; ++consumer)
          ptx::named_barrier_arrive(kReady + consumer * kWgmmaStages + stage, kProducers + kWarpgroup);
        if (last || step % (kChunk / kStep) == kChunk / kStep - 1) raw_buffer ^= 1;
        stage = next_stage;
      }
      if (!has_next) break;
      tile = next_tile, place = next;
    }
    return;
  }

  if constexpr (kThreads == 384) ptx::more_registers<192>();
  const int consumer = warpgroup - kProducers / kWarpgroup;
  const int row = consumer * 64 + threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4;
  const ptx::MatrixDescriptor first_weights =
      ptx::matrix_descriptor(stages + consumer * 64 * kLine, kLine, kEightLines);
  const ptx::MatrixDescriptor first_x = ptx::matrix_descriptor(stages + T::kWeightBytes, kLine, kEightLines);
  const int n_blocks_tiles = blockIdx.x < n_tiles ? (n_tiles - 1 - blockIdx.x) / gridDim.x + 1 : 0;
  const int n_all = n_blocks_tiles * n_steps;
  int stage = 0, n_used = 0;
  float sums[kColumns / 8][4];
  // Places are free as long as somebody will fill them again.
  auto release = [&](int used, int number) {
    if (number + kWgmmaStages < n_all) ptx::named_barrier_arrive(kFree + used, kThreads);
  };
#pragma unroll 1
  for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
#pragma unroll 1
    for (int step = 0; step < n_steps; ++step, ++n_used) {
      ptx::named_barrier_sync(kReady + consumer * kWgmmaStages + stage, kProducers + kWarpgroup);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStep / 16; ++k)
        ptx::wgmma_bf16<0>(sums, ptx::moved(first_weights, stage * T::kStageBytes + 32 * k),
                           ptx::moved(first_x, stage * T::kStageBytes + 32 * k), step + k > 0);
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      if (step > 0) release(stage == 0 ? kWgmmaStages - 1 : stage - 1, n_used - 1);
      stage = stage + 1 == kWgmmaStages ? 0 : stage + 1;
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_received(sums);
    release(stage == 0 ? kWgmmaStages - 1 : stage - 1, n_used - 1);
    const WgmmaPlace place = place_of(tile);
    if (call.out_type == kFloat32)
      write_tile<Float32, kColumns>(sums, static_cast<float*>(out), order, call, place, row);
    else if (call.out_type == kFloat16)
      write_tile<Float16, kColumns>(sums, static_cast<unsigned short*>(out), order, call, place, row);
    else
      write_tile<Bfloat16, kColumns>(sums, static_cast<unsigned short*>(out), order, call, place, row);
  }
}
