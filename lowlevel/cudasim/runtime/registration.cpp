// What a kernel library says of itself while it loads: `extern __shared__` at file scope, __device__ variables.
#include "runner.h"

namespace cudasim {

namespace {

Registered registered;  // by the library that loads now

// Every library's variables begin here: they are mapped only while one of its kernels runs. Far apart and each
// at the end of its pages, so that what misses a variable by little hits nothing.
constexpr uintptr_t kFirstVariable = 0x1000000000, kGap = 1u << 28, kPage = 4096;
uintptr_t next_variable;

}  // namespace

void begin_registration() {
  registered = {};
  next_variable = kFirstVariable;
}

Registered end_registration() { return registered; }

void register_dynamic_shared(void** pointer, size_t alignment, size_t element) {
  registered.dynamic_pointers.push_back({pointer, alignment, element});
}

void* register_device_variable(DeviceVariable variable) {
  const uintptr_t pages = (variable.bytes + kPage - 1) / kPage * kPage;
  variable.address = next_variable + (pages - variable.bytes) / variable.alignment * variable.alignment;
  next_variable += pages + kGap;
  registered.device_variables.push_back(variable);
  return reinterpret_cast<void*>(variable.address);
}

void set_dynamic_pointers() {
  for (const DynamicPointer& each : current.registered->dynamic_pointers)
    *each.pointer = dynamic_shared(each.alignment, each.element);
}

}  // namespace cudasim
