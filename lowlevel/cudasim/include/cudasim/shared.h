// What source.py makes of __shared__ declarations.
//
//   __shared__ __align__(16) float a[4][8], b;      becomes
//   struct cudasim_1 { __align__(16) float a[4][8], b; };
//   static cudasim::SharedVariable cudasim_1_a = {...}; auto& a = cudasim::shared<...>(cudasim_1_a);
//
// so that each variable keeps its declared type and alignment and lies beside a guard page.
#pragma once
#include <type_traits>

#include <cudasim/runtime.h>

namespace cudasim {

template <class T>
inline T& shared(SharedVariable& variable) {
  return *static_cast<T*>(shared_address(variable));
}

template <class T>
constexpr size_t element_size() {
  return sizeof(std::remove_all_extents_t<T>);
}

// `extern __shared__ T name[]`: a pointer to the launch's dynamic shared memory.
template <class Array>
inline std::remove_extent_t<Array>* dynamic_shared_array(size_t alignment) {
  using Element = std::remove_extent_t<Array>;
  return static_cast<Element*>(dynamic_shared(alignment, element_size<Element>()));
}

// The same at file scope: the runtime sets `*pointer` before each block.
template <class Array>
inline std::remove_extent_t<Array>* follow_dynamic_shared(std::remove_extent_t<Array>** pointer, size_t alignment) {
  register_dynamic_shared(reinterpret_cast<void**>(pointer), alignment, element_size<std::remove_extent_t<Array>>());
  return nullptr;
}

}  // namespace cudasim
