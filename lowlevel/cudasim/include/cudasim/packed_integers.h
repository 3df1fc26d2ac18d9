// Four bytes or two 16-bit integers of a word at once: the "SIMD video" intrinsics.
#pragma once
#include <stdint.h>

template <class Part, class Operation>
inline unsigned cudasim_by_part(unsigned a, unsigned b, Operation operation) {
  constexpr int bits = 8 * sizeof(Part);
  constexpr unsigned mask = (1u << bits) - 1;
  unsigned result = 0;
  for (int i = 0; i < 32; i += bits)
    result |= ((unsigned)operation((int)(Part)(a >> i), (int)(Part)(b >> i)) & mask) << i;
  return result;
}
template <class Part>
inline unsigned cudasim_sum_of_differences(unsigned a, unsigned b) {
  unsigned sum = 0;
  for (int i = 0; i < 32; i += 8 * (int)sizeof(Part)) {
    const int x = (Part)(a >> i), y = (Part)(b >> i);
    sum += (unsigned)(x > y ? x - y : y - x);
  }
  return sum;
}

#define CUDASIM_BY_PART(NAME, PART, EXPRESSION)                               \
  inline unsigned NAME(unsigned a, unsigned b) {                              \
    return cudasim_by_part<PART>(a, b, [](int x, int y) { return (EXPRESSION); }); \
  }
#define CUDASIM_EACH_PART(NAME, PART, EXPRESSION)                             \
  inline unsigned NAME(unsigned a) {                                          \
    return cudasim_by_part<PART>(a, a, [](int x, int) { return (EXPRESSION); }); \
  }
#define CUDASIM_CLAMP(v, low, high) ((v) < (low) ? (low) : (v) > (high) ? (high) : (v))
// vcmp sets every bit of a part, vset the lowest.
#define CUDASIM_COMPARE(NAME, N, PART, OPERATOR)                              \
  CUDASIM_BY_PART(__vcmp##NAME##N, PART, x OPERATOR y ? -1 : 0)               \
  CUDASIM_BY_PART(__vset##NAME##N, PART, x OPERATOR y ? 1 : 0)
#define CUDASIM_PACKED(N, SIGNED, UNSIGNED, LOWEST, HIGHEST, MOST)            \
  CUDASIM_BY_PART(__vadd##N, UNSIGNED, x + y)                                 \
  CUDASIM_BY_PART(__vsub##N, UNSIGNED, x - y)                                 \
  CUDASIM_BY_PART(__vaddss##N, SIGNED, CUDASIM_CLAMP(x + y, LOWEST, HIGHEST)) \
  CUDASIM_BY_PART(__vsubss##N, SIGNED, CUDASIM_CLAMP(x - y, LOWEST, HIGHEST)) \
  CUDASIM_BY_PART(__vaddus##N, UNSIGNED, CUDASIM_CLAMP(x + y, 0, MOST))       \
  CUDASIM_BY_PART(__vsubus##N, UNSIGNED, CUDASIM_CLAMP(x - y, 0, MOST))       \
  CUDASIM_BY_PART(__vminu##N, UNSIGNED, x < y ? x : y)                        \
  CUDASIM_BY_PART(__vmaxu##N, UNSIGNED, x > y ? x : y)                        \
  CUDASIM_BY_PART(__vmins##N, SIGNED, x < y ? x : y)                          \
  CUDASIM_BY_PART(__vmaxs##N, SIGNED, x > y ? x : y)                          \
  CUDASIM_BY_PART(__vavgu##N, UNSIGNED, (x + y + 1) >> 1)                     \
  CUDASIM_BY_PART(__vhaddu##N, UNSIGNED, (x + y) >> 1)                        \
  CUDASIM_BY_PART(__vabsdiffu##N, UNSIGNED, x > y ? x - y : y - x)            \
  CUDASIM_BY_PART(__vabsdiffs##N, SIGNED, x > y ? x - y : y - x)              \
  CUDASIM_EACH_PART(__vabs##N, SIGNED, x < 0 ? -x : x)                        \
  CUDASIM_EACH_PART(__vabsss##N, SIGNED, x == LOWEST ? HIGHEST : x < 0 ? -x : x) \
  CUDASIM_EACH_PART(__vneg##N, SIGNED, -x)                                    \
  CUDASIM_EACH_PART(__vnegss##N, SIGNED, x == LOWEST ? HIGHEST : -x)          \
  CUDASIM_COMPARE(eq, N, UNSIGNED, ==)                                        \
  CUDASIM_COMPARE(ne, N, UNSIGNED, !=)                                        \
  CUDASIM_COMPARE(ges, N, SIGNED, >=)                                         \
  CUDASIM_COMPARE(geu, N, UNSIGNED, >=)                                       \
  CUDASIM_COMPARE(gts, N, SIGNED, >)                                          \
  CUDASIM_COMPARE(gtu, N, UNSIGNED, >)                                        \
  CUDASIM_COMPARE(les, N, SIGNED, <=)                                         \
  CUDASIM_COMPARE(leu, N, UNSIGNED, <=)                                       \
  CUDASIM_COMPARE(lts, N, SIGNED, <)                                          \
  CUDASIM_COMPARE(ltu, N, UNSIGNED, <)                                        \
  inline unsigned __vsads##N(unsigned a, unsigned b) { return cudasim_sum_of_differences<SIGNED>(a, b); } \
  inline unsigned __vsadu##N(unsigned a, unsigned b) { return cudasim_sum_of_differences<UNSIGNED>(a, b); }
CUDASIM_PACKED(4, int8_t, uint8_t, -128, 127, 255)
CUDASIM_PACKED(2, int16_t, uint16_t, -32768, 32767, 65535)
