// The table of kernels that a compiled library shows the runner: for each its entry point and its
// parameters' types, so that arguments can be checked before the launch.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <type_traits>
#include <utility>

#include <cudasim/vector_types.h>

namespace cudasim {

// The NumPy type of a scalar ("f4", "u1", ...; "bf2" is bfloat16, "V" any bytes) and how many of
// them the type holds (float4: 4 x "f4").
template <class T, class = void>
struct TypeCode {
  static constexpr const char* code = "V";
  static constexpr int count = 1;
};
template <class T>
struct TypeCode<T, std::enable_if_t<std::is_arithmetic<T>::value || std::is_enum<T>::value>> {
  static constexpr const char* name() {
    if (std::is_same<T, bool>::value) return "b1";
    if (std::is_same<T, char>::value) return "c1";
    if (std::is_floating_point<T>::value) return sizeof(T) == 4 ? "f4" : "f8";
    constexpr const char* names[2][4] = {{"u1", "u2", "u4", "u8"}, {"i1", "i2", "i4", "i8"}};
    constexpr int power = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1
                                           : sizeof(T) == 4   ? 2
                                                              : 3;
    return names[std::is_signed<T>::value || std::is_enum<T>::value][power];
  }
  static constexpr const char* code = name();
  static constexpr int count = 1;
};

struct Parameter {
  const char* code;  // of the value, or of what a pointer points to
  int count;
  unsigned bytes;      // of the parameter itself
  unsigned pointee;    // bytes of what it points to; 0: not a pointer
  unsigned alignment;  // of what it points to
  bool is_const;       // pointer to const
};

struct Kernel {
  const char* name;
  const char* parameter_names;  // joined by commas
  void* function;
  void (*call)(void* function, void** arguments);
  const Parameter* parameters;
  int n_parameters;
};

// Where a library keeps threadIdx and its kin (built_ins.h), for the runner to set.
struct BuiltIns {
  uint3* thread_index;
  uint3* block_index;
  dim3* block_dim;
  dim3* grid_dim;
  unsigned* threads_per_block;
};

template <class T>
constexpr size_t size_or_one() {
  if constexpr (std::is_void<T>::value || std::is_function<T>::value) return 1;
  else return sizeof(T);
}
template <class T>
constexpr size_t alignment_or_one() {
  if constexpr (std::is_void<T>::value || std::is_function<T>::value) return 1;
  else return alignof(T);
}

template <class T>
constexpr Parameter describe() {
  if constexpr (std::is_pointer<T>::value) {
    using Qualified = std::remove_pointer_t<T>;
    using Pointee = std::remove_cv_t<Qualified>;
    if constexpr (std::is_pointer<Pointee>::value)  // a table of device pointers
      return {"u8", 1, sizeof(T), sizeof(Pointee), alignof(Pointee), std::is_const<Qualified>::value};
    else
      return {TypeCode<Pointee>::code, TypeCode<Pointee>::count, sizeof(T),
              (unsigned)size_or_one<Pointee>(), (unsigned)alignment_or_one<Pointee>(),
              std::is_const<Qualified>::value};
  } else {
    return {TypeCode<T>::code, TypeCode<T>::count, sizeof(T), 0, alignof(T), false};
  }
}

template <class Signature>
struct Invoke;
template <class... Parameters>
struct Invoke<void(Parameters...)> {
  // One spare entry, so that a kernel without parameters has a table too.
  static constexpr Parameter table[sizeof...(Parameters) + 1] = {
      describe<std::remove_cv_t<Parameters>>()..., {}};
  template <size_t... I>
  static void apply(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[I])...);
  }
  static void call(void* function, void** arguments) {
    apply(reinterpret_cast<void (*)(Parameters...)>(function), arguments,
          std::index_sequence_for<Parameters...>());
  }
};

template <class... Parameters>
inline Kernel make_kernel(const char* name, void (*kernel)(Parameters...), const char* parameter_names) {
  using Caller = Invoke<void(Parameters...)>;
  return {name, parameter_names, reinterpret_cast<void*>(kernel), Caller::call, Caller::table,
          (int)sizeof...(Parameters)};
}

}  // namespace cudasim

#define CUDASIM_TYPE_CODE(T, CODE, COUNT)           \
  template <>                                       \
  struct cudasim::TypeCode<T> {                     \
    static constexpr const char* code = CODE;       \
    static constexpr int count = COUNT;             \
  };
#define CUDASIM_VECTOR_CODES(NAME, CODE) \
  CUDASIM_TYPE_CODE(NAME##1, CODE, 1)    \
  CUDASIM_TYPE_CODE(NAME##2, CODE, 2)    \
  CUDASIM_TYPE_CODE(NAME##3, CODE, 3)    \
  CUDASIM_TYPE_CODE(NAME##4, CODE, 4)
CUDASIM_VECTOR_CODES(char, "i1")
CUDASIM_VECTOR_CODES(uchar, "u1")
CUDASIM_VECTOR_CODES(short, "i2")
CUDASIM_VECTOR_CODES(ushort, "u2")
CUDASIM_VECTOR_CODES(int, "i4")
CUDASIM_VECTOR_CODES(uint, "u4")
CUDASIM_VECTOR_CODES(long, "i8")
CUDASIM_VECTOR_CODES(ulong, "u8")
CUDASIM_VECTOR_CODES(longlong, "i8")
CUDASIM_VECTOR_CODES(ulonglong, "u8")
CUDASIM_VECTOR_CODES(float, "f4")
CUDASIM_VECTOR_CODES(double, "f8")
