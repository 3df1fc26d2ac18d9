// Host stand-in for CUDA's cooperative_groups/reduce.h.
#pragma once
#include <cooperative_groups.h>

namespace cooperative_groups {

#define CUDASIM_OPERATION(NAME, EXPRESSION)        \
  template <class T = void>                        \
  struct NAME {                                    \
    T operator()(T a, T b) const { return EXPRESSION; } \
  };                                               \
  template <>                                      \
  struct NAME<void> {                              \
    template <class T>                             \
    T operator()(T a, T b) const { return EXPRESSION; } \
  };
CUDASIM_OPERATION(plus, (T)(a + b))
CUDASIM_OPERATION(less, b < a ? b : a)     // the smaller one
CUDASIM_OPERATION(greater, a < b ? b : a)  // the greater one
CUDASIM_OPERATION(bit_and, (T)(a & b))
CUDASIM_OPERATION(bit_or, (T)(a | b))
CUDASIM_OPERATION(bit_xor, (T)(a ^ b))
#undef CUDASIM_OPERATION

template <unsigned n, class Parent, class T, class Operation>
inline T reduce(const thread_block_tile<n, Parent>& tile, T value, Operation operation, CUDASIM_SITE) {
  return tile.combined(value, operation, site);
}

}  // namespace cooperative_groups
