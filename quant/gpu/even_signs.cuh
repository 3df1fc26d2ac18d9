// The signs of IQ2_XXS, IQ2_XS and IQ3_XXS: seven bits for eight weights.
#pragma once

// Of seven sign bits all eight: their number is even.
__device__ __forceinline__ unsigned even_signs(unsigned seven) {
  return (seven & 127) | (__popc(seven & 127) & 1) << 7;
}
