// CUDA's built-in vector types, with its sizes and alignments, and dim3.
#pragma once

#define CUDASIM_VECTOR_TYPE(T, NAME, ALIGN2, ALIGN4)                                         \
  struct NAME##1 {                                                                           \
    T x;                                                                                     \
  };                                                                                         \
  struct alignas(ALIGN2) NAME##2 {                                                           \
    T x, y;                                                                                  \
  };                                                                                         \
  struct NAME##3 {                                                                           \
    T x, y, z;                                                                               \
  };                                                                                         \
  struct alignas(ALIGN4) NAME##4 {                                                           \
    T x, y, z, w;                                                                            \
  };                                                                                         \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }                                         \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                 \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                         \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDASIM_VECTOR_TYPE(signed char, char, 2, 4)
CUDASIM_VECTOR_TYPE(unsigned char, uchar, 2, 4)
CUDASIM_VECTOR_TYPE(short, short, 4, 8)
CUDASIM_VECTOR_TYPE(unsigned short, ushort, 4, 8)
CUDASIM_VECTOR_TYPE(int, int, 8, 16)
CUDASIM_VECTOR_TYPE(unsigned int, uint, 8, 16)
CUDASIM_VECTOR_TYPE(long, long, 16, 16)
CUDASIM_VECTOR_TYPE(unsigned long, ulong, 16, 16)
CUDASIM_VECTOR_TYPE(long long, longlong, 16, 16)
CUDASIM_VECTOR_TYPE(unsigned long long, ulonglong, 16, 16)
CUDASIM_VECTOR_TYPE(float, float, 8, 16)
CUDASIM_VECTOR_TYPE(double, double, 16, 16)

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};
