// Many rows of x on Hopper's warpgroup products (sm_90a): weights become bfloat16 in shared memory, as
// dequantisation to bfloat16 gives them, and meet x as bfloat16; sums are float32.
//
// A block stays on its multiprocessor and makes tiles of kTileRows rows of weights times kColumns rows of
// x, one after another, 64 columns at a time in one of kStages places. Its last two warpgroups multiply, 64
// rows of weights each; one of their threads has the copy engine bring x, as it lies in the image that
// tile_rows (matmul_x.cu) made of it. The other warpgroups decode weights from raw blocks, which come 256
// weights of each row at a time and one such chunk ahead.
//
// Operands are K-major and swizzled by 128 bytes, see wgmma.cuh: a line is 64 values of a row.
#pragma once
#include "bulk.cuh"
#include "dequantize.cuh"
#include "matmul_call.cuh"
#include "wgmma.cuh"

constexpr int kWarpgroup = 128, kConsumers = 2 * kWarpgroup;
constexpr int kTileRows = 128, kStep = 64, kChunk = 256;  // rows of weights; columns
constexpr int kLine = 2 * kStep, kEightLines = 8 * kLine;  // bytes
constexpr int kMostShared = 227 << 10, kMostStages = 6;
constexpr int kRawReady = 1;  // named barrier
// Of each thread, of 168 that 384 threads start with.
constexpr int kFewRegisters = 128, kManyRegisters = 184;
static_assert(kWarpgroup * kFewRegisters + kConsumers * kManyRegisters <= 384 * 168, "or a block waits forever");

template <class Format, int kThreads, int kColumns>
struct WgmmaTile {
  static constexpr int kProducers = kThreads - kConsumers;
  // They take turns in teams, a step each, so that one decodes while another waits; threads of one.
  static constexpr int kTeam = kWarpgroup, kTeams = kProducers / kTeam;
  static constexpr int kRawBytes = kChunk / Format::kBlockWeights * Format::kBlockBytes;
  static constexpr int kPieces = (kRawBytes + 30) / 16;
  static constexpr int kRawPitch = 16 * (kPieces | 1);  // odd: neighbouring rows lie in different banks
  static constexpr int kWeightBytes = kTileRows * kLine, kXBytes = kColumns * kLine;
  static constexpr int kStageBytes = kWeightBytes + kXBytes;
  static constexpr int kRawBuffer = kTileRows * kRawPitch;
  static constexpr int kBarrierBytes = 128;
  static constexpr int kFitting = (kMostShared - kBarrierBytes - 2 * kRawBuffer) / kStageBytes;
  static constexpr int kStages = kFitting < kMostStages ? kFitting : kMostStages;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kRawBuffer + kBarrierBytes;
  static_assert(16 * kMostStages <= kBarrierBytes, "two barriers a stage");
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

// Starts copying a chunk of the rows' blocks, 16 threads a row. Rows beyond the last are the last one again.
template <class T>
__device__ __forceinline__ void copy_raw(unsigned char* raw, const WgmmaPlace& place, const MatmulCall& call,
                                         int chunk) {
  constexpr int kAtOnce = T::kProducers / 16;  // rows; so many lie a multiple of 16 bytes apart
  const int begin = chunk * T::kRawBytes, n_bytes = min(T::kRawBytes, call.row_bytes - begin);
  const int first = threadIdx.x / 16, piece = threadIdx.x % 16;
  auto row_at = [&](int row) { return place.rows + ((long long)min(row, place.n_rows - 1) * call.row_stride + begin); };
  if (place.whole && place.n_rows == kTileRows) {
    const unsigned char* from = row_at(first);
    const int skew = skew_of(from, true);
    from += 16 * piece - skew;
    ptx::SharedPlace to = ptx::shared_place(raw + first * T::kRawPitch + 16 * piece);
    const long long next = (long long)kAtOnce * call.row_stride;
    const bool mine = piece < T::kPieces && 16 * piece < n_bytes + skew, more = 16 * piece + 256 < n_bytes + skew;
#pragma unroll 8
    for (int i = 0; i < (kTileRows + kAtOnce - 1) / kAtOnce; ++i) {
      const bool there = kTileRows % kAtOnce == 0 || first + i * kAtOnce < kTileRows;
      if (there && mine) ptx::cp_async_16(to + i * kAtOnce * T::kRawPitch, from);
      if (T::kPieces > 16 && there && more) ptx::cp_async_16(to + (i * kAtOnce * T::kRawPitch + 256), from + 256);
      from += next;
    }
    return;
  }
#pragma unroll 1
  for (int row = first; row < kTileRows; row += kAtOnce) {
    const unsigned char* const from = row_at(row);
    const int skew = skew_of(from, place.whole);
#pragma unroll 1
    for (int i = piece; i < T::kPieces; i += 16)
      copy_piece(raw + row * T::kRawPitch + 16 * i, from + (16 * i - skew), n_bytes + skew - 16 * i, place.whole);
  }
}

// A block's bytes as `Bytes` gives them; where blocks are at other addresses words come as two that are at
// multiples of 4.
template <int kAlignment>
struct SharedBytes : Bytes<kAlignment> {
  template <int kMultiple, int N>
  __device__ __forceinline__ void words(int offset, unsigned (&words)[N]) const {
    if constexpr (kAlignment >= 4 && kMultiple >= 4) {
      Bytes<kAlignment>::template words<kMultiple>(offset, words);
    } else if constexpr (kAlignment == 1) {
      const unsigned shift = ((unsigned)(size_t)this->first + offset) & 3, selector = 0x3210 + 0x1111 * shift;
      const unsigned char* const from = this->first + offset - shift;
      unsigned part[N + 1];
#pragma unroll
      for (int i = 0; i < N; ++i) part[i] = *reinterpret_cast<const unsigned*>(from + 4 * i);
      part[N] = shift ? *reinterpret_cast<const unsigned*>(from + 4 * N) : 0;
#pragma unroll
      for (int i = 0; i < N; ++i) words[i] = ptx::permute(part[i], part[i + 1], selector);
    } else {
      const unsigned address = (unsigned)(size_t)this->first + offset;
      const unsigned char* const from = this->first + offset - (address & 2);
      const bool shifted = address & 2;
      const unsigned selector = shifted ? 0x5432 : 0x3210;
      unsigned part[N + 1];
#pragma unroll
      for (int i = 0; i < N; ++i) part[i] = *reinterpret_cast<const unsigned*>(from + 4 * i);
      part[N] = 0;  // nothing may follow
      if (shifted) part[N] = *reinterpret_cast<const unsigned short*>(from + 4 * N);
#pragma unroll
      for (int i = 0; i < N; ++i) words[i] = ptx::permute(part[i], part[i + 1], selector);
    }
  }
};

// A decoding thread's two rows of a chunk of raw blocks. Rows beyond the last are the last one again.
template <class Format, class T>
struct DecodedRows {
  static constexpr int kRows = 2, kNext = kTileRows / kRows;
  static_assert(kTileRows * 2 == kRows * T::kTeam, "a thread takes half a step of each row");
  const unsigned char* raw[kRows];

  __device__ __forceinline__ DecodedRows(const unsigned char* buffer, const WgmmaPlace& place, const MatmulCall& call,
                                         int first, int chunk) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = first + i * kNext;
      const unsigned start = (unsigned)(size_t)place.rows +
                             min(row, place.n_rows - 1) * (unsigned)call.row_stride + (unsigned)chunk * T::kRawBytes;
      raw[i] = buffer + (row * T::kRawPitch + (place.whole ? start & 15 : 0));
    }
  }

  // 32 weights of each row, half a step from weight `pair` + kInPair of the chunk on, to `to` and the lines
  // behind it: 16 bytes i at to ^ 16 i. Zeros unless `inside` the matrix.
  template <int kInPair>
  __device__ __forceinline__ void decode(unsigned char* stage, unsigned to, int pair, int half, bool inside) const {
    // Of 32 weights a block, `half` is the block; of more, a part of it.
    constexpr bool kSmall = Format::kBlockWeights == 32;
    constexpr bool kOne = Format::kBlockWeights == kChunk;
    const int block = kSmall ? pair / 32 + kInPair / 32 + (inside ? half : 0)
                      : kOne ? 0
                             : (pair | kInPair) / Format::kBlockWeights;
    const int index = kSmall ? 0
                      : kOne ? pair | kInPair | 32 * half
                             : (pair | kInPair) % Format::kBlockWeights | 32 * half;
    // One warp a scheduler decodes both rows at once, for more instructions to choose from; of two warps each
    // has not the registers.
    constexpr int kAtOnce = T::kTeams == 1 ? kRows : 1;
#pragma unroll
    for (int first = 0; first < kRows; first += kAtOnce) {
      uint4 packed[kAtOnce][4];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const SharedBytes<Format::kAlignment> bytes = {{raw[first + r] + block * Format::kBlockBytes}};
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          float weights[16];
          Format::template decode<16>(bytes, index | 16 * part, weights);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            unsigned words[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              words[j] = floats::to_bfloats(weights[8 * i + 2 * j], weights[8 * i + 2 * j + 1]);
              if (kSmall && !inside) words[j] = 0;
            }
            packed[r][2 * part + i] = make_uint4(words[0], words[1], words[2], words[3]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          *reinterpret_cast<uint4*>(stage + ((to ^ 16 * i) + (first + r) * kNext * kLine)) = packed[r][i];
    }
  }
};

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

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// A place in a ring of stages, and the parity of the phase that its barriers are in.
template <int kStages>
struct Ring {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

template <class Format, int kThreads, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_wgmma(const unsigned char* __restrict__ weights, const unsigned char* __restrict__ more_weights,
                 const unsigned char* __restrict__ x_image, void* __restrict__ out,
                 const int* __restrict__ order, const int* __restrict__ groups, const MatmulCall call) {
  ptx::await_earlier_kernels();
  using T = WgmmaTile<Format, kThreads, kColumns>;
  constexpr int kStages = T::kStages, kProducers = T::kProducers;
  extern __shared__ __align__(1024) unsigned char wgmma_shared[];
  unsigned char* const stages = wgmma_shared;
  unsigned char* const raw = stages + kStages * T::kStageBytes;
  // Of each stage: weights and x are there; nobody reads them any more.
  ptx::MemoryBarrier* const ready = reinterpret_cast<ptx::MemoryBarrier*>(raw + 2 * T::kRawBuffer);
  ptx::MemoryBarrier* const free = ready + kStages;
  const int n_groups = count_groups(groups, call);
  const int row_tiles = (call.n_rows + kTileRows - 1) / kTileRows * (more_weights ? 2 : 1);
  const int n_tiles = n_groups * row_tiles, n_steps = (call.columns + kStep - 1) / kStep;
  const int n_chunks = (call.columns + kChunk - 1) / kChunk;
  // The same in all lanes, as far as the compiler can see too.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);
  auto place_of = [&](int tile) {
    return wgmma_place<kColumns>(weights, more_weights, groups, call, tile, n_groups, row_tiles);
  };
  if (threadIdx.x == 0) {
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::make_memory_barrier(ready + stage, T::kTeam / 32 + 1);
      ptx::make_memory_barrier(free + stage, kConsumers / 32);
    }
    ptx::memory_barriers_made();
  }
  __syncthreads();

  if (warpgroup < kProducers / kWarpgroup) {
    if constexpr (kThreads == 384) ptx::fewer_registers<kFewRegisters>();
    int tile = blockIdx.x;
    if (tile >= n_tiles) return;
    WgmmaPlace place = place_of(tile);
    copy_raw<T>(raw, place, call, 0);
    ptx::cp_async_commit();
    Ring<kStages> ring;
    // Known to the compiler as numbers that change, or it would find them anew in every step.
    const int thread = (int)ptx::copied_now(threadIdx.x % T::kTeam), half = thread % 2, first = thread / 2;
    const unsigned to = ptx::copied_now(first * kLine + ((4 * half) ^ (first & 7)) * 16);
    int raw_buffer = 0, turn = __shfl_sync(0xffffffffu, threadIdx.x / T::kTeam, 0);  // steps until this team's
    while (true) {
      const int next_tile = tile + gridDim.x;
      const bool has_next = next_tile < n_tiles;
      const WgmmaPlace next = has_next ? place_of(next_tile) : place;
#pragma unroll 1
      for (int chunk = 0; chunk < n_chunks; ++chunk, raw_buffer ^= 1) {
        ptx::cp_async_wait<0>();
        ptx::named_barrier_sync(kRawReady, kProducers);  // and nobody reads the other buffer any more
        unsigned char* const other = raw + (raw_buffer ^ 1) * T::kRawBuffer;
        if (chunk + 1 < n_chunks) copy_raw<T>(other, place, call, chunk + 1);
        else if (has_next) copy_raw<T>(other, next, call, 0);
        ptx::cp_async_commit();
        const DecodedRows<Format, T> rows(raw + raw_buffer * T::kRawBuffer, place, call, first, chunk);
        // Two steps are what parts of a super-block repeat in; more would not fit the instruction cache.
#pragma unroll 1
        for (int pair = 0; pair < kChunk; pair += 2 * kStep) {
          const int left = call.columns - chunk * kChunk - pair;
          auto make = [&](auto in_pair) {
            constexpr int kInPair = decltype(in_pair)::value;
            if (kInPair >= left) return;
            if (turn == 0) {
              ptx::await(free + ring.stage, ring.parity ^ 1);
              rows.template decode<kInPair>(stages + ring.stage * T::kStageBytes, to, pair, half,
                                            kInPair + 32 * half < left);
              ptx::fence_proxy_async();
              __syncwarp();
              if (threadIdx.x % 32 == 0) ptx::arrive(ready + ring.stage);
            }
            turn = turn == 0 ? T::kTeams - 1 : turn - 1;
            ring.next();
          };
          make(Constant<0>()), make(Constant<kStep>());
        }
      }
      if (!has_next) break;
      tile = next_tile, place = next;
    }
    return;
  }

  if constexpr (kThreads == 384) ptx::more_registers<kManyRegisters>();
  const int consumer = warpgroup - kProducers / kWarpgroup;
  const int row = consumer * 64 + threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4;
  const bool copies = threadIdx.x == kProducers;
  const ptx::MatrixDescriptor first_weights =
      ptx::matrix_descriptor(stages + consumer * 64 * kLine, kLine, kEightLines);
  const ptx::MatrixDescriptor first_x = ptx::matrix_descriptor(stages + T::kWeightBytes, kLine, kEightLines);

  // What the copying thread has asked for: `asked` steps of tile `asked_tile`, into place `target`.
  Ring<kStages> target;
  int asked = 0, asked_tile = blockIdx.x;
  const unsigned char* source = nullptr;
  auto ask = [&]() {
    if (asked_tile >= n_tiles) return;
    if (asked == 0) source = x_image + (long long)place_of(asked_tile).first_slot * kLine;
    ptx::arrive_expecting(ready + target.stage, T::kXBytes);
    ptx::copy_bulk(stages + target.stage * T::kStageBytes + T::kWeightBytes, source, T::kXBytes, ready + target.stage);
    source += (long long)call.image_slots * kLine;
    if (++asked == n_steps) asked = 0, asked_tile += gridDim.x;
    target.next();
  };
  if (copies)
    for (int i = 0; i < kStages; ++i) ask();
  __syncwarp();

  Ring<kStages> ring, last;
  float sums[kColumns / 8][4];
  // The place used last is free, and x may come there again when all have left it.
  auto release = [&]() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::arrive(free + last.stage);
    if (copies) {
      ptx::await(free + last.stage, last.parity);
      ask();
    }
    __syncwarp();
    last.next();
  };
#pragma unroll 1
  for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
#pragma unroll 1
    for (int step = 0; step < n_steps; ++step) {
      ptx::await(ready + ring.stage, ring.parity);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStep / 16; ++k)
        ptx::wgmma_bf16<0>(sums, ptx::moved(first_weights, ring.stage * T::kStageBytes + 32 * k),
                           ptx::moved(first_x, ring.stage * T::kStageBytes + 32 * k), step + k > 0);
      ptx::wgmma_commit();
      ring.next();
      if (step > 0) {
        ptx::wgmma_wait<1>();
        release();
      }
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_received(sums);
    release();
    const WgmmaPlace place = place_of(tile);
    if (call.out_type == kFloat32)
      write_tile<Float32, kColumns>(sums, static_cast<float*>(out), order, call, place, row);
    else if (call.out_type == kFloat16)
      write_tile<Float16, kColumns>(sums, static_cast<unsigned short*>(out), order, call, place, row);
    else
      write_tile<Bfloat16, kColumns>(sums, static_cast<unsigned short*>(out), order, call, place, row);
  }
}
