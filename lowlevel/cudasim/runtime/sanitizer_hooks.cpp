// The functions that -fsanitize=thread and -fsanitize=undefined make the compiler call. Kernel
// libraries are compiled with these flags but linked without the sanitizers' own runtimes: what
// they report comes here.
#include <string.h>

#include "runner.h"

using cudasim::Access;
using cudasim::Fault;

// ---- -fsanitize=thread: a call before each load and store ----------------------------------------
#define CUDASIM_LOG(NAME, BYTES, ACCESS)                                                       \
  extern "C" void NAME(void* address) {                                                        \
    cudasim::log_access(address, BYTES, ACCESS, __builtin_return_address(0));                  \
  }
#define CUDASIM_LOG_SIZE(N)                                              \
  CUDASIM_LOG(__tsan_read##N, N, Access::kRead)                          \
  CUDASIM_LOG(__tsan_write##N, N, Access::kWrite)                        \
  CUDASIM_LOG(__tsan_unaligned_read##N, N, Access::kRead)                \
  CUDASIM_LOG(__tsan_unaligned_write##N, N, Access::kWrite)              \
  CUDASIM_LOG(__tsan_volatile_read##N, N, Access::kAtomicRead)           \
  CUDASIM_LOG(__tsan_volatile_write##N, N, Access::kAtomicWrite)              \
  CUDASIM_LOG(__tsan_unaligned_volatile_read##N, N, Access::kAtomicRead) \
  CUDASIM_LOG(__tsan_unaligned_volatile_write##N, N, Access::kAtomicWrite)
CUDASIM_LOG_SIZE(1)
CUDASIM_LOG_SIZE(2)
CUDASIM_LOG_SIZE(4)
CUDASIM_LOG_SIZE(8)
CUDASIM_LOG_SIZE(16)

extern "C" {
void __tsan_read_range(void* address, unsigned long bytes) {
  cudasim::log_access(address, bytes, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long bytes) {
  cudasim::log_access(address, bytes, Access::kWrite, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  cudasim::log_access(from, bytes, Access::kRead, __builtin_return_address(0));
  cudasim::log_access(to, bytes, Access::kWrite, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  cudasim::log_access(to, bytes, Access::kWrite, __builtin_return_address(0));
  return memset(to, value, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  cudasim::log_access(from, bytes, Access::kRead, __builtin_return_address(0));
  cudasim::log_access(to, bytes, Access::kWrite, __builtin_return_address(0));
  return memmove(to, from, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
}

// ---- -fsanitize=undefined: a call where the program is about to do something undefined -----------
namespace {

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];  // quoted
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment, check;
};
struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor *array, *index;
};

[[noreturn]] void undefined(const void* data, const char* what) {
  const auto& location = *static_cast<const SourceLocation*>(data);
  cudasim::fail(Fault::kUndefined, {location.file, (int)location.line}, "undefined behaviour: %s", what);
}

}  // namespace

extern "C" {
[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* data, uintptr_t address) {
  const cudasim::Site site = {data->location.file, (int)data->location.line};
  const uintptr_t alignment = (uintptr_t)1 << data->log_alignment;
  const char* type = data->type->name;
  if (!address) cudasim::fail(Fault::kOutOfBounds, site, "out of bounds: a null pointer to %s is used", type);
  if (address & (alignment - 1))
    cudasim::fail(Fault::kMisaligned, site, "misaligned: %s needs an address that is a multiple of %lu; this one is %lu off",
                  type, (unsigned long)alignment, (unsigned long)(address & (alignment - 1)));
  cudasim::fail(Fault::kOutOfBounds, site, "out of bounds: no room for a %s", type);
}
[[noreturn]] void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* data, uintptr_t index) {
  cudasim::fail(Fault::kOutOfBounds, {data->location.file, (int)data->location.line},
                "out of bounds: index %ld of an array of type %s", (long)(int32_t)index, data->array->name);
}

#define CUDASIM_UNDEFINED(NAME, WHAT) \
  [[noreturn]] void __ubsan_handle_##NAME##_abort(const void* data) { undefined(data, WHAT); }
CUDASIM_UNDEFINED(shift_out_of_bounds, "a shift by a negative number or by the type's width or more")
CUDASIM_UNDEFINED(divrem_overflow, "a division by zero, or one that overflows")
CUDASIM_UNDEFINED(add_overflow, "a signed addition overflows")
CUDASIM_UNDEFINED(sub_overflow, "a signed subtraction overflows")
CUDASIM_UNDEFINED(mul_overflow, "a signed multiplication overflows")
CUDASIM_UNDEFINED(negate_overflow, "a signed negation overflows")
CUDASIM_UNDEFINED(pointer_overflow, "pointer arithmetic overflows")
CUDASIM_UNDEFINED(vla_bound_not_positive, "an array of no or negative length")
CUDASIM_UNDEFINED(load_invalid_value, "a bool or enum holds no value of its type")
CUDASIM_UNDEFINED(nonnull_arg, "a null pointer is passed where none may be")
CUDASIM_UNDEFINED(invalid_builtin, "__builtin_clz or __builtin_ctz of 0")
CUDASIM_UNDEFINED(float_cast_overflow, "a float does not fit the integer it is cast to")
[[noreturn]] void __ubsan_handle_builtin_unreachable(const void* data) { undefined(data, "unreachable code is reached"); }
[[noreturn]] void __ubsan_handle_missing_return(const void* data) { undefined(data, "a function ends without return"); }
}
