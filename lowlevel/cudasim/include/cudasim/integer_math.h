// Integer intrinsics: bit tricks, high halves and averages, dot products of packed bytes.
#pragma once
#include <stdint.h>

#include <cudasim/vector_types.h>

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned long long __brevll(unsigned long long v) {
  unsigned long long result = 0;
  for (int i = 0; i < 64; ++i) result |= (v >> i & 1) << (63 - i);
  return result;
}
inline unsigned __brev(unsigned v) { return (unsigned)(__brevll(v) >> 32); }

inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return (unsigned)(((unsigned long long)a * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline long long __mul64hi(long long a, long long b) { return (long long)(((__int128)a * b) >> 64); }
inline int __hadd(int a, int b) { return (int)(((long long)a + b) >> 1); }
inline int __rhadd(int a, int b) { return (int)(((long long)a + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a + b) >> 1); }
inline unsigned __urhadd(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a + b + 1) >> 1); }
inline unsigned __sad(int a, int b, unsigned c) { return c + (a > b ? (unsigned)a - (unsigned)b : (unsigned)b - (unsigned)a); }
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a > b ? a - b : b - a); }
inline unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned umax(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long llmin(long long a, long long b) { return a < b ? a : b; }
inline long long llmax(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline int __mul24(int a, int b) { return (int)((int64_t)(a << 8 >> 8) * (b << 8 >> 8)); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const uint64_t both = (uint64_t)high << 32 | low;
  return (unsigned)(both << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const uint64_t both = (uint64_t)high << 32 | low;
  return (unsigned)(both >> (shift & 31));
}

// With shifts beyond 32 taken as 32.
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

// Picks four of the eight bytes of b:a. Unlike PTX's prmt, __byte_perm ignores a selector's top bit
// (seen on an H100).
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= ((unsigned)(bytes >> (8 * (selectors >> (4 * i) & 7))) & 0xff) << (8 * i);
  return result;
}

// ---- dot products of packed integers -----------------------------------------------------------
template <class Byte, class Word>
inline Word cudasim_dp4a(Word a, Word b, Word c) {
  unsigned sum = (unsigned)c;
  for (int i = 0; i < 4; ++i)
    sum += (unsigned)((int)(Byte)((unsigned)a >> (8 * i)) * (int)(Byte)((unsigned)b >> (8 * i)));
  return (Word)sum;
}
inline int __dp4a(int a, int b, int c) { return cudasim_dp4a<int8_t>(a, b, c); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return cudasim_dp4a<uint8_t>(a, b, c); }
inline int __dp4a(char4 a, char4 b, int c) {
  return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}
inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
  return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}
template <class Half, class Byte, class Word>
inline Word cudasim_dp2a(Word a, Word b, Word c, int first_byte) {
  unsigned sum = (unsigned)c;
  for (int i = 0; i < 2; ++i)
    sum += (unsigned)((int)(Half)((unsigned)a >> (16 * i)) *
                      (int)(Byte)((unsigned)b >> (8 * (first_byte + i))));
  return (Word)sum;
}
inline int __dp2a_lo(int a, int b, int c) { return cudasim_dp2a<int16_t, int8_t>(a, b, c, 0); }
inline int __dp2a_hi(int a, int b, int c) { return cudasim_dp2a<int16_t, int8_t>(a, b, c, 2); }
inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) {
  return cudasim_dp2a<uint16_t, uint8_t>(a, b, c, 0);
}
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned c) {
  return cudasim_dp2a<uint16_t, uint8_t>(a, b, c, 2);
}
