// Host stand-in for CUDA's mma.h: nvcuda::wmma. Which element lies with which thread is this file's own choice
// (on a device it is unspecified); sums are of float64 and rounded once.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cudasim/prelude.h>

namespace nvcuda {
namespace wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
namespace precision {
struct tf32 {};
}
enum layout_t {
  mem_row_major,
  mem_col_major
};

// To the nearest of 10 bits of mantissa, ties away from zero: what a tf32 operand should hold.
inline float __float_to_tf32(float value) {
  const unsigned bits = __float_as_uint(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? value : __uint_as_float((bits + 0x1000u) & ~0x1fffu);
}

namespace cudasim_wmma {
template <class T>
struct Stored { using type = T; };
template <>
struct Stored<precision::tf32> { using type = float; };

template <class Use, int m, int n, int k>
struct Shape;
template <int m, int n, int k>
struct Shape<matrix_a, m, n, k> { static constexpr int rows = m, columns = k; };
template <int m, int n, int k>
struct Shape<matrix_b, m, n, k> { static constexpr int rows = k, columns = n; };
template <int m, int n, int k>
struct Shape<accumulator, m, n, k> { static constexpr int rows = m, columns = n; };

template <class T>
constexpr bool is_shape(int m, int n, int k) {
  if (std::is_same<T, precision::tf32>::value) return m == 16 && n == 16 && k == 8;
  if (std::is_same<T, double>::value) return m == 8 && n == 8 && k == 4;
  return k == 16 && ((m == 16 && n == 16) || (m == 32 && n == 8) || (m == 8 && n == 32));
}
}  // namespace cudasim_wmma

template <class Use, int m, int n, int k, class T, class Layout = void>
class fragment {
 public:
  using Element = typename cudasim_wmma::Stored<T>::type;
  using Shape = cudasim_wmma::Shape<Use, m, n, k>;
  static_assert(std::is_same<Use, accumulator>::value || cudasim_wmma::is_shape<T>(m, n, k),
                "cudasim: wmma has 16x16x16, 32x8x16 and 8x32x16 for half, bfloat16 and bytes, 16x16x8 for tf32, "
                "8x8x4 for double; parts of a byte are not simulated");
  static constexpr int num_elements = Shape::rows * Shape::columns / 32;
  using element_type = Element;
  using storage_element_type = Element;
  Element x[num_elements];

  // Element i of a lane, as an index into the matrix's rows one after another.
  static int index(int lane, int i) { return lane * num_elements + i; }
};

namespace cudasim_wmma {

// An operand's value as the tensor core takes it.
template <class T, class Element>
inline double operand(Element value) {
  if constexpr (std::is_same<T, precision::tf32>::value)
    return __uint_as_float(__float_as_uint(value) & ~0x1fffu);
  else return (double)value;
}
template <>
inline double operand<__half, __half>(__half value) { return (float)value; }
template <>
inline double operand<__nv_bfloat16, __nv_bfloat16>(__nv_bfloat16 value) { return (float)value; }

template <class D>
inline D rounded(double value) {
  if constexpr (std::is_same<D, int>::value) return (int)(unsigned)(long long)value;
  else return D(value);
}

// The whole warp comes to a load or store, as on a device.
inline void together(cudasim::Collective kind, cudasim::Site site) {
  cudasim::publish(0xffffffffu, kind, site, 0);
}

template <class Fragment>
inline size_t offset(int i, unsigned stride, bool by_rows) {
  const int index = Fragment::index(cudasim::lane_id(), i);
  const int row = index / Fragment::Shape::columns, column = index % Fragment::Shape::columns;
  return by_rows ? (size_t)row * stride + column : (size_t)column * stride + row;
}

template <class T>
inline void check_stride(unsigned stride, cudasim::Site site) {
  if (stride * sizeof(T) % 16)
    cudasim::fail(cudasim::Fault::kMisaligned, site,
                  "wmma: a leading dimension of %u elements of %zu bytes; it must be a multiple of 16 bytes", stride,
                  sizeof(T));
}

template <class A, class B, class C, class D>
struct Operands {
  const A* a;
  const B* b;
  const C* c;
  D* d;
};
}  // namespace cudasim_wmma

template <class Use, int m, int n, int k, class T, class Layout>
inline void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& f,
                             const typename fragment<Use, m, n, k, T, Layout>::Element* from, unsigned stride,
                             CUDASIM_SITE) {
  static_assert(!std::is_same<Use, accumulator>::value, "an accumulator's load says its layout");
  cudasim_wmma::together(cudasim::Collective::kLoadMatrix, site);
  cudasim_wmma::check_stride<typename fragment<Use, m, n, k, T, Layout>::Element>(stride, site);
  for (int i = 0; i < f.num_elements; ++i)
    f.x[i] = from[cudasim_wmma::offset<fragment<Use, m, n, k, T, Layout>>(i, stride,
                                                                          std::is_same<Layout, row_major>::value)];
}
template <int m, int n, int k, class T>
inline void load_matrix_sync(fragment<accumulator, m, n, k, T>& f, const T* from, unsigned stride, layout_t layout,
                             CUDASIM_SITE) {
  cudasim_wmma::together(cudasim::Collective::kLoadMatrix, site);
  cudasim_wmma::check_stride<T>(stride, site);
  for (int i = 0; i < f.num_elements; ++i)
    f.x[i] = from[cudasim_wmma::offset<fragment<accumulator, m, n, k, T>>(i, stride, layout == mem_row_major)];
}
template <int m, int n, int k, class T>
inline void store_matrix_sync(T* to, const fragment<accumulator, m, n, k, T>& f, unsigned stride, layout_t layout,
                              CUDASIM_SITE) {
  cudasim_wmma::together(cudasim::Collective::kLoadMatrix, site);
  cudasim_wmma::check_stride<T>(stride, site);
  for (int i = 0; i < f.num_elements; ++i)
    to[cudasim_wmma::offset<fragment<accumulator, m, n, k, T>>(i, stride, layout == mem_row_major)] = f.x[i];
}

template <class Use, int m, int n, int k, class T, class Layout, class Value>
inline void fill_fragment(fragment<Use, m, n, k, T, Layout>& f, const Value& value) {
  for (auto& element : f.x) element = (typename fragment<Use, m, n, k, T, Layout>::Element)value;
}

// D = A * B + C. The last lane to come multiplies for all.
template <int m, int n, int k, class T, class LayoutA, class LayoutB, class C, class D>
inline void mma_sync(fragment<accumulator, m, n, k, D>& d, const fragment<matrix_a, m, n, k, T, LayoutA>& a,
                     const fragment<matrix_b, m, n, k, T, LayoutB>& b, const fragment<accumulator, m, n, k, C>& c,
                     bool saturate = false, CUDASIM_SITE) {
  using Operands = cudasim_wmma::Operands<fragment<matrix_a, m, n, k, T, LayoutA>,
                                          fragment<matrix_b, m, n, k, T, LayoutB>, fragment<accumulator, m, n, k, C>,
                                          fragment<accumulator, m, n, k, D>>;
  if (saturate)
    cudasim::fail(cudasim::Fault::kLaunch, site, "wmma: saturation to finite values is not simulated");
  const Operands operands = {&a, &b, &c, &d};
  const Operands* own = &operands;
  const cudasim::Complete multiply = [](cudasim::Round& round) {
    double whole_a[m * k], whole_b[k * n], whole_d[m * n];
    const auto of = [&round](int lane) { return cudasim::published<const Operands*>(round, lane); };
    for (int lane = 0; lane < 32; ++lane) {
      const Operands& held = *of(lane);
      for (int i = 0; i < held.a->num_elements; ++i)
        whole_a[held.a->index(lane, i)] = cudasim_wmma::operand<T>(held.a->x[i]);
      for (int i = 0; i < held.b->num_elements; ++i)
        whole_b[held.b->index(lane, i)] = cudasim_wmma::operand<T>(held.b->x[i]);
      for (int i = 0; i < held.c->num_elements; ++i) whole_d[held.c->index(lane, i)] = (double)held.c->x[i];
    }
    for (int row = 0; row < m; ++row)
      for (int depth = 0; depth < k; ++depth)
        for (int column = 0; column < n; ++column)
          whole_d[row * n + column] += whole_a[row * k + depth] * whole_b[depth * n + column];
    for (int lane = 0; lane < 32; ++lane) {
      const Operands& held = *of(lane);
      for (int i = 0; i < held.d->num_elements; ++i)
        held.d->x[i] = cudasim_wmma::rounded<D>(whole_d[held.d->index(lane, i)]);
    }
  };
  cudasim::publish(0xffffffffu, cudasim::Collective::kMma, site, own, multiply);
}

}  // namespace wmma
}  // namespace nvcuda
