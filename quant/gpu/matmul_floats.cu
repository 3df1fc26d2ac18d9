// Products with F32, F16 and BF16; x is always float32.
#include "matmul_exact.cuh"

// A unit is 16 bytes; a row's last one may be shorter, and counts as zeros there.
template <class Type>
struct FloatUnits {
  static constexpr int kBlockWeights = Type::kVector, kBlockBytes = 16, kUnits = 1, kRuns = 1;
  static constexpr int kRun = kBlockWeights, kBytes = sizeof(typename Type::Bits);
  static constexpr int kAlignment = kBytes;
  static constexpr bool kMinima = false, kInterleaved = false;
  struct Raw {
    float value[kRun];
  };
  static __device__ __forceinline__ float value_of(unsigned bits) {
    if constexpr (kBytes == 4) return __uint_as_float(bits);
    else return Type::widen((unsigned short)bits);
  }
  static __device__ __forceinline__ Raw load(const Place& unit, int valid) {
    Raw raw;
    if (valid >= kRun) {
      unsigned words[4];
      read_last_words(unit, 0, words);
#pragma unroll
      for (int i = 0; i < kRun; ++i)
        raw.value[i] = value_of(kBytes == 4 ? words[i % 4] : words[i * kBytes / 4] >> (16 * (i % 2)) & 0xffff);
    } else {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        raw.value[i] = 0.0f;
        if (i >= valid) continue;
        unsigned bits = read_half_word(unit, kBytes * i);
        if (kBytes == 4) bits |= read_half_word(unit, kBytes * i + 2) << 16;
        raw.value[i] = value_of(bits);
      }
    }
    return raw;
  }
  static __device__ __forceinline__ int start(int, int) { return 0; }
};
using F32 = FloatUnits<Float32>;
using F16 = FloatUnits<Float16>;
using BF16 = FloatUnits<Bfloat16>;
