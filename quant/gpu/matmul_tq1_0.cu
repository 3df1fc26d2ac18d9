// Products with TQ1_0: a super-block of 256 weights of -1, 0, 1, five in a byte, and a scale.
#include "constants/tq1_0.cuh"
#include "matmul_formats.cuh"

// Bytes are fractions of 256 in base 3. Of 32 bytes the first digits are 32 weights, the second ones the next 32, ...;
// then of 16 bytes, then the first four of qh's 4. Of the second half of a block runs are therefore digit 4 of the 32
// bytes, digits 0 or 1, 2 or 3 of the 16, and digit 4 of those or qh.
struct TQ1_0 : OneScale<Blocks256x16<constants::TQ1_0>> {
  struct Raw {
    unsigned first[4], later[4], high;  // of run 0, or in the first half of all; of the other runs; qh
    unsigned powers;                    // of 3, a byte a run: what brings its digit to the front
    bool is_late, is_last;              // a unit of the second half, its second one
    float d;
  };
  template <class P>
  static __device__ __forceinline__ Raw load(const P& block, int unit) {
    Raw raw;
    unsigned high[1];
    read_words(block, kQs + 16 * (unit % 2), raw.first);
    read_words(block, kQs + 32, raw.later);
    read_words(block, kQh, high);
    raw.high = high[0];
    raw.is_late = unit >= 2, raw.is_last = unit == 3;
    raw.powers = unit < 2 ? kFirstPowers : unit == 2 ? 0x51090151u
                                                     : 0x511b0351u;
    raw.d = read_half(block, kD);
    return raw;
  }
  static __device__ __forceinline__ void words(const Raw& raw, int run, unsigned (&w)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned bytes = run > 0 && raw.is_late ? raw.later[i] : raw.first[i], power = raw.powers >> (8 * run) & 255;
      if (run == 3 && raw.is_last) bytes = raw.high, power = kFirstPowers >> (8 * i) & 255;
      w[i] = less<1>(digits(bytes, power));
    }
  }
  static __device__ __forceinline__ void folded_words(const Raw& raw, int run, unsigned (&w)[4]) { words(raw, run, w); }

 private:
  static constexpr unsigned kFirstPowers = 0x1b090301u;
  // A digit of each of four bytes: two of them at a time, in 16 bits each.
  static __device__ __forceinline__ unsigned digits(unsigned bytes, unsigned power) {
    constexpr unsigned kBytes = 0x00ff00ffu;
    const unsigned even = (bytes & kBytes) * power & kBytes, odd = (bytes >> 8 & kBytes) * power & kBytes;
    return (even * 3 >> 8 & 0x00030003u) | (odd * 3 & 0x03000300u);
  }
};

#include "matmul_kernels.cuh"
