// What the operations on rows of models share: a thread works on pieces of eight values of a row, read and written
// 16 bytes at a time where they lie so, and in float32 between.
#pragma once
#include "float_types.cuh"
#include "ptx.cuh"

constexpr int kThreads = 256;
constexpr int kPiece = 8;

// Up to three operands of (planes, plane_rows, columns): strides in items.
struct RowsCall {
  long long x_plane, x_row, y_plane, y_row, out_plane, out_row;
  long long n_rows;  // of all planes
  int plane_rows, columns;
  int aligned;  // pieces of all operands start at multiples of 16 bytes
  int y_type;   // of y, where a kernel is not made for one: a FloatType
};

enum FloatType { kFloat32,
                 kFloat16,
                 kBfloat16 };

__device__ __forceinline__ long long row_offset(long long row, int plane_rows, long long plane_stride,
                                                long long row_stride) {
  if (row < plane_rows) return row * row_stride;
  const long long plane = row / plane_rows;
  return plane * plane_stride + (row - plane * plane_rows) * row_stride;
}

// The piece that a thread of a grid over all pieces has: its row and first column. `row` is past the end for none.
struct Piece {
  long long row;
  int column;

  __device__ __forceinline__ Piece(int columns) {
    const unsigned pieces = (columns + kPiece - 1) / kPiece;
    const unsigned long long index = (unsigned long long)blockIdx.x * kThreads + threadIdx.x;
    if (index >> 32 == 0) {  // the shorter division
      row = (unsigned)index / pieces;
      column = (int)((unsigned)index % pieces) * kPiece;
    } else {
      row = (long long)(index / pieces);
      column = (int)(index % pieces) * kPiece;
    }
  }
};

// The first n of eight values; 0 for the others.
template <class Type>
__device__ __forceinline__ void load_piece(const typename Type::Bits* from, int n, bool aligned, float (&v)[kPiece]) {
  if (aligned && n >= kPiece) {
    const uint4* const vectors = reinterpret_cast<const uint4*>(from);
#pragma unroll
    for (int i = 0; i < kPiece / Type::kVector; ++i) {
      const uint4 four = vectors[i];
      const unsigned words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (Type::kVector == 4) {
          v[4 * i + j] = __uint_as_float(words[j]);
        } else {
          v[2 * j] = Type::widen((unsigned short)(words[j] & 0xffffu));
          v[2 * j + 1] = Type::widen((unsigned short)(words[j] >> 16));
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) v[i] = i < n ? Type::widen(from[i]) : 0.0f;
  }
}

// The same of a type that is known at run time; `at` in items.
__device__ __forceinline__ void load_any(const void* from, long long at, int type, int n, bool aligned,
                                         float (&v)[kPiece]) {
  const auto halves = static_cast<const unsigned short*>(from) + at;
  if (type == kFloat32) {
    load_piece<Float32>(static_cast<const float*>(from) + at, n, aligned, v);
  } else if (type == kFloat16) {
    load_piece<Float16>(halves, n, aligned, v);
  } else {
    load_piece<Bfloat16>(halves, n, aligned, v);
  }
}

template <class Type>
__device__ __forceinline__ void store_piece(typename Type::Bits* to, int n, bool aligned, const float (&v)[kPiece]) {
  if (aligned && n >= kPiece) {
    uint4* const vectors = reinterpret_cast<uint4*>(to);
#pragma unroll
    for (int i = 0; i < kPiece / Type::kVector; ++i) {
      float part[Type::kVector];
#pragma unroll
      for (int j = 0; j < Type::kVector; ++j) part[j] = v[i * Type::kVector + j];
      vectors[i] = Type::pack(part);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
      if (i < n) to[i] = Type::narrow(v[i]);
  }
}

// 1 / (1 + exp(-x)), 0 below -87; NaN stays NaN.
__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  const float p = __fdiv_rn(1.0f, 1.0f + e);
  return x < -87.0f ? 0.0f : (x < 0.0f ? e * p : p);
}
