// Loads and stores with a cache hint: the hint means nothing here.
#pragma once
#include <stddef.h>

#define CUDASIM_LOAD(NAME)            \
  template <class T>                  \
  inline T NAME(const T* address) {   \
    return *address;                  \
  }
CUDASIM_LOAD(__ldg)
CUDASIM_LOAD(__ldca)
CUDASIM_LOAD(__ldcg)
CUDASIM_LOAD(__ldcs)
CUDASIM_LOAD(__ldlu)
CUDASIM_LOAD(__ldcv)

#define CUDASIM_STORE(NAME)                  \
  template <class T>                         \
  inline void NAME(T* address, T value) {    \
    *address = value;                        \
  }
CUDASIM_STORE(__stwb)
CUDASIM_STORE(__stcg)
CUDASIM_STORE(__stcs)
CUDASIM_STORE(__stwt)

// Shared addresses are 32-bit offsets on the device; here they are plain pointers, which only the
// seam header (ptx.cuh) may use.
inline size_t __cvta_generic_to_shared(const void* pointer) {
  return reinterpret_cast<size_t>(pointer);
}
