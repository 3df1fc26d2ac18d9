// F32, F16 and BF16: plain floats to other floats.
#include "dequantize.cuh"

template <class In>
__device__ __forceinline__ float widen(unsigned bits) {
  if constexpr (sizeof(typename In::Bits) == 4) return __uint_as_float(bits);
  else return In::widen((unsigned short)bits);
}

template <int kWords>
__device__ __forceinline__ void load_words(const unsigned char* address,
                                           unsigned (&words)[kWords]) {
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(address) + i);
      words[4 * i] = four.x, words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
    }
  } else {
    const uint2 two = __ldg(reinterpret_cast<const uint2*>(address));
    words[0] = two.x, words[1] = two.y;
  }
}

// Converts rows of row_weights values; rows lie source_stride bytes and out_stride weights apart.
// kAligned: every row starts at a multiple of 16 bytes on both sides. One thread takes one vector of
// the output; at a row's end, value by value.
template <class In, class Out, bool kAligned>
__global__ void __launch_bounds__(256)
    convert(const unsigned char* __restrict__ source, long long source_stride,
            typename Out::Bits* __restrict__ out, long long out_stride, long long row_weights,
            long long n_vectors) {
  ptx::await_earlier_kernels();
  constexpr int kVector = Out::kVector, kBytes = sizeof(typename In::Bits);
  long long vector = blockIdx.x * 256ll + threadIdx.x, row = 0;
  if (vector >= n_vectors) return;
  const long long row_vectors = (row_weights + kVector - 1) / kVector;
  if (row_vectors < n_vectors) row = vector / row_vectors, vector %= row_vectors;
  const long long first = vector * kVector;
  source += row * source_stride + first * kBytes;
  out += row * out_stride + first;
  if (kAligned && first + kVector <= row_weights) {
    unsigned words[kVector * kBytes / 4];
    load_words(source, words);
    float values[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      values[i] = widen<In>(kBytes == 4 ? words[i % (kVector * kBytes / 4)] : words[i / 2] >> (16 * (i % 2)) & 0xffff);
    store_vector<Out, true>(out, values);
  } else {
    const long long left = row_weights - first;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i >= left) break;
      unsigned bits = 0;
      for (int byte = 0; byte < kBytes; ++byte)
        bits |= (unsigned)__ldg(source + i * kBytes + byte) << (8 * byte);
      out[i] = Out::narrow(widen<In>(bits));
    }
  }
}
