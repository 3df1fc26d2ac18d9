// Many 16-bit floats, packed in 32-bit registers, to float32.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <cudasim/small_float.h>

namespace cudasim {

struct HalfToFloat {
  static void convert(float* to, const uint32_t* registers, int n_values) {  // a multiple of 8
#if defined(__F16C__)
    for (int i = 0; i < n_values; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(
                                   reinterpret_cast<const __m128i*>(registers + i / 2))));
#else
    for (int i = 0; i < n_values; ++i) to[i] = half_bits_to_float((uint16_t)(registers[i / 2] >> (16 * (i % 2))));
#endif
  }
};
struct Bfloat16ToFloat {
  static void convert(float* to, const uint32_t* registers, int n_values) {
    for (int i = 0; i < n_values; i += 2) {
      const uint32_t pair[2] = {registers[i / 2] << 16, registers[i / 2] & 0xffff0000u};
      memcpy(to + i, pair, sizeof pair);
    }
  }
};

}  // namespace cudasim
