// What the dequantising kernels of all block formats share.
//
// A format is a struct with
//   kBlockWeights, kBlockBytes
//   kAlignment       what its blocks are aligned to in an aligned tensor: a power of two up to 16
//   kPieces          how many pieces of consecutive weights one thread decodes
//   decode<kVector, kAligned>(block, thread, write)
//                    calls write(index, weights) for each of its kPieces pieces of kVector weights,
//                    index being the first one's place in the block
// A piece is what one 16-byte store takes: 4 weights in float32, 8 in 16 bits.
#pragma once
#include "float_types.cuh"

// ---- loads ----------------------------------------------------------------------------------------

// N 32-bit words from an address that is a multiple of kAlignment.
template <int kAlignment, int N>
__device__ __forceinline__ void load_words(const unsigned char* address, unsigned (&words)[N]) {
  if constexpr (kAlignment >= 16 && N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(address) + i);
      words[4 * i] = four.x, words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
    }
  } else if constexpr (kAlignment >= 8 && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(address) + i);
      words[2 * i] = two.x, words[2 * i + 1] = two.y;
    }
  } else if constexpr (kAlignment >= 4) {
#pragma unroll
    for (int i = 0; i < N; ++i) words[i] = __ldg(reinterpret_cast<const unsigned*>(address) + i);
  } else if constexpr (kAlignment >= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const unsigned short* halves = reinterpret_cast<const unsigned short*>(address) + 2 * i;
      words[i] = __ldg(halves) | (unsigned)__ldg(halves + 1) << 16;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const unsigned char* bytes = address + 4 * i;
      words[i] = __ldg(bytes) | (unsigned)__ldg(bytes + 1) << 8 | (unsigned)__ldg(bytes + 2) << 16 |
                 (unsigned)__ldg(bytes + 3) << 24;
    }
  }
}

template <bool kAligned>
__device__ __forceinline__ float load_half(const unsigned char* address) {
  if constexpr (kAligned)
    return floats::from_half(__ldg(reinterpret_cast<const unsigned short*>(address)));
  return floats::from_half(
      (unsigned short)(__ldg(address) | (unsigned)__ldg(address + 1) << 8));
}

// ---- codes ----------------------------------------------------------------------------------------

// Byte i of an array of words.
template <int N>
__device__ __forceinline__ unsigned byte_of(const unsigned (&words)[N], int i) {
  return words[i / 4] >> (8 * (i % 4)) & 0xff;
}
template <int N>
__device__ __forceinline__ int signed_byte_of(const unsigned (&words)[N], int i) {
  return (signed char)byte_of(words, i);
}

// weights[i] = factor * (byte i + offset), rounded once: byte + offset is exact.
template <int kVector>
__device__ __forceinline__ void scale_bytes(const unsigned (&codes)[kVector / 4], float offset,
                                            float factor, float (&weights)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    weights[i] = __fmul_rn((float)byte_of(codes, i) + offset, factor);
}

// weights[i] = factor * byte i - minimum. The product must be exact: one rounding in all.
template <int kVector>
__device__ __forceinline__ void scale_bytes_less(const unsigned (&codes)[kVector / 4], float factor,
                                                 float minimum, float (&weights)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    weights[i] = __fmaf_rn((float)byte_of(codes, i), factor, -minimum);
}

// ---- the kernel -----------------------------------------------------------------------------------

// Writes a piece: one store of 16 bytes, or value by value where the address may not allow it.
template <class Out, bool kAligned>
__device__ __forceinline__ void store_piece(typename Out::Bits* out,
                                            const float (&weights)[Out::kVector]) {
  if constexpr (kAligned) {
    *reinterpret_cast<uint4*>(out) = Out::pack(weights);
  } else {
#pragma unroll
    for (int i = 0; i < Out::kVector; ++i) out[i] = Out::narrow(weights[i]);
  }
}

// Decodes n_blocks blocks in rows of row_blocks. Blocks of a row lie side by side, as do their
// weights; rows lie source_stride bytes and out_stride weights apart. kAligned: every block has the
// format's alignment, and every block's weights that of a 16-byte vector.
template <class Format, class Out, bool kAligned>
__global__ void __launch_bounds__(256)
    dequantize(const unsigned char* __restrict__ source, long long source_stride,
               typename Out::Bits* __restrict__ out, long long out_stride, unsigned row_blocks,
               unsigned n_blocks) {
  constexpr int kThreads = Format::kBlockWeights / (Format::kPieces * Out::kVector);
  static_assert(kThreads >= 1 && 256 % kThreads == 0, "a block's threads fill a thread block");
  const unsigned block = blockIdx.x * (256u / kThreads) + threadIdx.x / kThreads;
  if (block >= n_blocks) return;
  unsigned row = 0, column = block;
  if (row_blocks < n_blocks) row = block / row_blocks, column = block % row_blocks;
  source += row * source_stride + (long long)column * Format::kBlockBytes;
  out += row * out_stride + (long long)column * Format::kBlockWeights;
  Format::template decode<Out::kVector, kAligned>(
      source, (int)(threadIdx.x % kThreads),
      [out](int index, const float(&weights)[Out::kVector]) {
        store_piece<Out, kAligned>(out + index, weights);
      });
}
