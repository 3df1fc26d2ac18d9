// Copying between arrays of any strides: what concat, and every copy on the device, comes down to.
//
// One thread copies one unit. Units are counted in 32 bits, offsets in 64: the host cuts a larger
// copy into launches (copies.py). The grid has one axis only.

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

template <class Unit>
__global__ void __launch_bounds__(256)
    copy_strided(const void* source, void* target, const Axes layout, unsigned n_units) {
  const unsigned unit = blockIdx.x * 256u + threadIdx.x;
  if (unit >= n_units) return;
  unsigned rest = unit;
  long long from = 0, to = 0;
#pragma unroll
  for (int i = 0; i < kMaxAxes; ++i) {
    if (i == layout.n_axes) break;
    const Axis& axis = layout.axes[i];
    const unsigned next =
        divide(rest, axis.multiplier, layout.shifts[i / 4] >> (8 * (i % 4)) & 0xff);
    const long long index = rest - next * axis.length;
    from += index * axis.source_stride;
    to += index * axis.target_stride;
    rest = next;
  }
  static_cast<Unit*>(target)[to] = static_cast<const Unit*>(source)[from];
}
