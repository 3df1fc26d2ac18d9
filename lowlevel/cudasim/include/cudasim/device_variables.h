// What source_variables.py makes of __device__ variables.
//
//   __device__ int counter = 3;      becomes
//   namespace cudasim_device_1 { static int counter = 3; }
//   static auto& counter = cudasim::device_variable(cudasim_device_1::counter, "counter", alignment);
//
// a reference into pages that all runners share during a launch. Python keeps their contents for each module
// from launch to launch; the static holds what they start with.
#pragma once
#include <type_traits>

#include <cudasim/runtime.h>

namespace cudasim {

template <class T>
inline T& device_variable(T& initial, const char* name, size_t alignment) {
  void* address = register_device_variable(
      {name, const_cast<std::remove_cv_t<T>*>(&initial), sizeof(T), alignment, sizeof(std::remove_all_extents_t<T>), 0});
  return *static_cast<T*>(address);
}

}  // namespace cudasim
