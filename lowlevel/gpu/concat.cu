// Copying between arrays of any strides: what concat, and every copy on the device, comes down to.
//
// Units are counted in 32 bits, offsets in 64: the host cuts a larger copy into launches (copies.py).
// The grid has one axis only.
#include "ptx.cuh"

constexpr int kMaxAxes = 8;

// One axis: its length and how to divide by it, its strides in units.
struct Axis {
  long long source_stride, target_stride;
  unsigned length, multiplier;
};
struct Axes {
  Axis axes[kMaxAxes];  // fastest first
  int n_axes;
  unsigned shifts[3];   // of the divisions, a byte for each axis
};

// n / length for n below 2**31, by the multiplication that copies.py prepared.
__device__ __forceinline__ unsigned divide(unsigned n, unsigned multiplier, unsigned shift) {
  return (__umulhi(n, multiplier) + n) >> shift;
}

// Where the n-th item of an array of these axes is read and written, and its first two indices.
struct Place {
  long long from, to;
  unsigned indices[2];
};
__device__ __forceinline__ Place place_of(unsigned n, const Axes& layout) {
  Place place = {0, 0, {0, 0}};
#pragma unroll
  for (int i = 0; i < kMaxAxes; ++i) {
    if (i == layout.n_axes) break;
    const Axis& axis = layout.axes[i];
    const unsigned next =
        divide(n, axis.multiplier, layout.shifts[i / 4] >> (8 * (i % 4)) & 0xff);
    const long long index = n - next * axis.length;
    place.from += index * axis.source_stride;
    place.to += index * axis.target_stride;
    if (i < 2) place.indices[i] = (unsigned)index;
    n = next;
  }
  return place;
}

// One thread copies one unit.
template <class Unit>
__global__ void __launch_bounds__(256)
    copy_strided(const void* source, void* target, const Axes layout, unsigned n_units) {
  ptx::await_earlier_kernels();
  const unsigned unit = blockIdx.x * 256u + threadIdx.x;
  if (unit >= n_units) return;
  const Place place = place_of(unit, layout);
  static_cast<Unit*>(target)[place.to] = static_cast<const Unit*>(source)[place.from];
}

// ---- side by side in the source along one axis, in the target along another --------------------------

constexpr unsigned kTile = 64;  // units along either axis that one thread block copies

struct Transposed {
  Axes tiles;               // the first axis is the target's, the second the source's
  long long source_stride;  // of a unit along the target's axis, in units
  long long target_stride;  // along the source's
  unsigned target_length, source_length;
};

// kWhole: all of the tile is there, and no unit needs a look whether it is.
template <bool kWhole, class Unit, class Tile>
__device__ __forceinline__ void transpose(const Unit* from, Unit* to, Tile& tile,
                                          const Transposed& layout, unsigned targets,
                                          unsigned sources) {
  constexpr unsigned kRows = 256 / kTile;
  const unsigned x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  Unit units[kTile / kRows];
#pragma unroll
  for (unsigned i = 0; i < kTile / kRows; ++i)
    if (kWhole || (x < sources && y + kRows * i < targets))
      units[i] = from[(y + kRows * i) * layout.source_stride + x];
#pragma unroll
  for (unsigned i = 0; i < kTile / kRows; ++i)
    if (kWhole || (x < sources && y + kRows * i < targets)) tile[x][y + kRows * i] = units[i];
  __syncthreads();
#pragma unroll
  for (unsigned i = 0; i < kTile / kRows; ++i)
    if (kWhole || (x < targets && y + kRows * i < sources))
      to[(y + kRows * i) * layout.target_stride + x] = tile[y + kRows * i][x];
}

// A whole tile of 16-bit units, two at a time on both sides. `words`: [kTile][kTile / 2 + 1].
template <class Unit>
__device__ __forceinline__ void transpose_pairs(const Unit* from, Unit* to, unsigned* words,
                                                const Transposed& layout) {
  constexpr unsigned kPitch = kTile / 2 + 1, kWarps = 256 / 32;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned first[4], second[4];
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    const Unit* const row = from + 2 * (warp + kWarps * i) * layout.source_stride + 2 * lane;
    first[i] = *reinterpret_cast<const unsigned*>(row);
    second[i] = *reinterpret_cast<const unsigned*>(row + layout.source_stride);
  }
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    unsigned* const column = words + 2 * lane * kPitch + warp + kWarps * i;
    column[0] = ptx::permute(first[i], second[i], 0x5410);
    column[kPitch] = ptx::permute(first[i], second[i], 0x7632);
  }
  __syncthreads();
#pragma unroll
  for (unsigned i = 0; i < kTile / kWarps; ++i) {
    const unsigned row = warp + kWarps * i;
    *reinterpret_cast<unsigned*>(to + row * layout.target_stride + 2 * lane) = words[row * kPitch + lane];
  }
}

template <class Unit>
__global__ void __launch_bounds__(256)
    copy_transposed(const void* source, void* target, const Transposed layout) {
  ptx::await_earlier_kernels();
  // Its rows are one 4-byte bank further each, or as far as a unit is wide.
  __shared__ __align__(4) Unit tile[kTile][kTile + (sizeof(Unit) < 4 ? 4 / sizeof(Unit) : 1)];
  const Place place = place_of(blockIdx.x, layout.tiles);
  const Unit* const from = static_cast<const Unit*>(source) + place.from;
  Unit* const to = static_cast<Unit*>(target) + place.to;
  const unsigned targets = layout.target_length - place.indices[0] * kTile;
  const unsigned sources = layout.source_length - place.indices[1] * kTile;
  const bool whole = targets >= kTile && sources >= kTile;
  if constexpr (sizeof(Unit) == 2) {
    const long long places = (long long)(size_t)from | (long long)(size_t)to | 2 * layout.source_stride |
                             2 * layout.target_stride;
    if (whole && places % 4 == 0) {
      transpose_pairs(from, to, reinterpret_cast<unsigned*>(&tile[0][0]), layout);
      return;
    }
  }
  if (whole)
    transpose<true>(from, to, tile, layout, targets, sources);
  else
    transpose<false>(from, to, tile, layout, targets, sources);
}

// ---- rows joined side by side ------------------------------------------------------------------------

constexpr int kSources = 4;

struct Rows {
  long long strides[kSources];  // of each source's rows, in units
  unsigned ends[kSources];      // where its part of a row of the target ends, in units
  unsigned multiplier, shift;   // to divide by a row's length, which is the last end
};

// A part of a row of the target: unit i of what a thread writes, for i below `stop`, is from[i].
template <class Unit>
struct Part {
  const Unit* from;
  unsigned stop;
  unsigned row, end;  // where it ends in the row

  // The part of which unit i is, at a column of a row.
  __device__ __forceinline__ void enter(const void* const (&sources)[kSources], const Rows& rows,
                                        unsigned i, unsigned column) {
    if (column == rows.ends[kSources - 1]) column = 0, ++row;
    const void* source = sources[0];
    long long stride = rows.strides[0];
    unsigned start = 0;
    end = rows.ends[0];
#pragma unroll
    for (int s = 1; s < kSources; ++s)
      if (column >= rows.ends[s - 1]) {
        source = sources[s], stride = rows.strides[s];
        start = rows.ends[s - 1], end = rows.ends[s];
      }
    from = static_cast<const Unit*>(source) + (row * stride + column - start - i);
    stop = i + end - column;
  }
};

// The target lies side by side from a multiple of 16 bytes on: one thread writes 16 of its bytes, of
// whatever rows and sources they are.
template <class Unit>
__global__ void __launch_bounds__(256)
    join_rows(const void* first, const void* second, const void* third, const void* fourth,
              void* target, const Rows rows, unsigned n_units) {
  ptx::await_earlier_kernels();
  constexpr unsigned kUnits = 16 / sizeof(Unit);
  const unsigned start = (blockIdx.x * 256u + threadIdx.x) * kUnits;
  if (start >= n_units) return;
  const void* const sources[kSources] = {first, second, third, fourth};
  Part<Unit> part;
  part.row = divide(start, rows.multiplier, rows.shift);
  part.enter(sources, rows, 0, start - part.row * rows.ends[kSources - 1]);
  Unit* const to = static_cast<Unit*>(target) + start;
  if (start + kUnits <= n_units) {
    union {
      Unit units[kUnits];
      uint4 all;
    } vector;
#pragma unroll
    for (unsigned i = 0; i < kUnits; ++i) {
      if (i == part.stop) part.enter(sources, rows, i, part.end);
      vector.units[i] = part.from[i];
    }
    ptx::store_16(to, vector.all);
  } else {
#pragma unroll 1
    for (unsigned i = 0; start + i < n_units; ++i) {
      if (i == part.stop) part.enter(sources, rows, i, part.end);
      to[i] = part.from[i];
    }
  }
}
