// Weights out of the entries of a table, as the dequantising kernels of IQ1, IQ2 and IQ3 formats have them.
#pragma once
#include "dequantize.cuh"
#include "even_signs.cuh"

// Four weights: bytes of a word times `scale`, those whose bit of `signs` (0 to 3) is set negated.
__device__ __forceinline__ void four_with_signs(unsigned word, unsigned signs, float scale, float* weights) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float weight = __fmul_rn(byte_plus(word, i, 0.0f), scale);
    weights[i] = __uint_as_float(__float_as_uint(weight) ^ (signs >> i & 1) << 31);
  }
}

// Four weights of IQ1 formats: signed bytes of a word (-1, 0, 1) plus `shift`, times `scale`.
__device__ __forceinline__ void four_shifted(unsigned word, float shift, float scale, float* weights) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    weights[i] = __fmul_rn(byte_plus(word ^ 0x80808080u, i, -128.0f) + shift, scale);
}

// d * (0.5 + s): exact.
__device__ __forceinline__ float fine_scale(float d, unsigned s) { return __fmul_rn(d, (float)s + 0.5f); }
