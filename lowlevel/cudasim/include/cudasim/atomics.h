// Atomic functions. Blocks run in several processes over the same pages, so these are the
// machine's own atomics. Each also tells the access log, and gives way now and then, so that a
// thread spinning on an atomic does not keep the thread it waits for from running.
#pragma once
#include <string.h>

#include <type_traits>

#include <cudasim/runtime.h>

namespace cudasim {

template <size_t bytes>
struct Word;
template <>
struct Word<2> { using type = uint16_t; };
template <>
struct Word<4> { using type = uint32_t; };
template <>
struct Word<8> { using type = uint64_t; };

template <class T>
inline void before_atomic(T* address, Access access) {
#ifdef CUDASIM_RACE
  log_access(address, sizeof(T), access, nullptr);
#endif
  (void)address, (void)access;
  spin_hint();
}

// Replaces *address by change(old) and returns old, for any type of 2, 4 or 8 bytes.
template <class T, class Change>
CUDASIM_NOT_LOGGED inline T atomic_update(
    T* address, Change change, Access access = Access::kAtomicUpdate) {
  using W = typename Word<sizeof(T)>::type;
  before_atomic(address, access);
  W old_word = __atomic_load_n(reinterpret_cast<W*>(address), __ATOMIC_RELAXED), new_word;
  T old_value;
  do {
    memcpy(static_cast<void*>(&old_value), &old_word, sizeof old_word);
    const T new_value = change(old_value);
    memcpy(&new_word, static_cast<const void*>(&new_value), sizeof new_word);
  } while (!__atomic_compare_exchange_n(reinterpret_cast<W*>(address), &old_word, new_word, false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  return old_value;
}

}  // namespace cudasim

#define CUDASIM_ATOMIC(NAME, T, EXPRESSION)                                        \
  inline T NAME(T* address, T value) {                                             \
    return cudasim::atomic_update(address, [=](T old) { return (T)(EXPRESSION); }); \
  }
#define CUDASIM_ATOMIC_EXCHANGE(T)                                                          \
  inline T atomicExch(T* address, T value) {                                                \
    return cudasim::atomic_update(                                                          \
        address, [=](T) { return value; }, cudasim::Access::kAtomicWrite);                  \
  }
#define CUDASIM_ATOMIC_INTEGER(T)                        \
  CUDASIM_ATOMIC(atomicAdd, T, old + value)              \
  CUDASIM_ATOMIC(atomicSub, T, old - value)              \
  CUDASIM_ATOMIC_EXCHANGE(T)                              \
  CUDASIM_ATOMIC(atomicMin, T, old < value ? old : value) \
  CUDASIM_ATOMIC(atomicMax, T, old > value ? old : value) \
  CUDASIM_ATOMIC(atomicAnd, T, old & value)              \
  CUDASIM_ATOMIC(atomicOr, T, old | value)               \
  CUDASIM_ATOMIC(atomicXor, T, old ^ value)
CUDASIM_ATOMIC_INTEGER(int)
CUDASIM_ATOMIC_INTEGER(unsigned)
CUDASIM_ATOMIC_INTEGER(long long)
CUDASIM_ATOMIC_INTEGER(unsigned long long)
CUDASIM_ATOMIC(atomicAdd, float, old + value)
CUDASIM_ATOMIC(atomicAdd, double, old + value)
CUDASIM_ATOMIC_EXCHANGE(float)
CUDASIM_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
CUDASIM_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)

template <class T>
inline T atomicCAS(T* address, T compare, T value) {
  return cudasim::atomic_update(
      address, [=](T old) { return memcmp(&old, &compare, sizeof(T)) == 0 ? value : old; });
}

#define atomicAdd_block atomicAdd
#define atomicAdd_system atomicAdd
