// Warpgroup products (Hopper, sm_90a only): inline PTX under the same terms as in ptx.cuh. Four warps, the
// first a multiple of four, multiply 64 rows at a time; operands come from shared memory by descriptor, A
// from registers too; nothing is done before a wait.
//
// d += a * b, or d = a * b unless `accumulates`; a is 64 x 16, b is 16 x N. In a warpgroup's warp w, lane
// l (g = l / 4, t = l % 4), as in the PTX ISA, wgmma.mma_async.m64nNk16:
//   d[n][0], d[n][1] row 16 w + g, columns 8 n + 2 t, 2 t + 1      d[n][2], d[n][3] row 16 w + g + 8
//   a[0..3] rows and k of mma.m16n8k16 (see ptx.cuh), of rows 16 w and on
//
// Matrices in shared memory, swizzled by 128 bytes: chunk c (16 bytes) of the 128-byte line l lies at
// c ^ (l % 8), lines counted from a multiple of 1024 bytes. "K-major": a line holds 64 values of k of a
// row of A or a column of B; `stride` is bytes from 8 lines to the next 8. "N-major" (B, transposed):
// a line holds 64 columns of one k; `stride` is bytes from 8 k to the next 8, `leading` from 64 columns
// to the next.
#pragma once

#include "ptx.cuh"

#ifdef CUDASIM
#define PTX_SITE , cudasim::Site site = cudasim::Site::here()
#define PTX_ONLY_SITE cudasim::Site site = cudasim::Site::here()
#else
#define PTX_SITE
#define PTX_ONLY_SITE
#endif

namespace ptx {

typedef unsigned long long MatrixDescriptor;
enum Swizzle {
  kNoSwizzle,
  kSwizzle128,
  kSwizzle64,
  kSwizzle32
};

#ifdef CUDASIM
__device__ __forceinline__ unsigned shared_address(const void* pointer) { return cudasim::shared_window(pointer); }
#endif

__device__ __forceinline__ MatrixDescriptor matrix_descriptor(const void* start, int leading, int stride,
                                                              Swizzle swizzle = kSwizzle128) {
  return (MatrixDescriptor)(shared_address(start) >> 4) | (MatrixDescriptor)(leading >> 4) << 16 |
         (MatrixDescriptor)(stride >> 4) << 32 | (MatrixDescriptor)swizzle << 62;
}
// The matrix that starts so many bytes later.
__device__ __forceinline__ MatrixDescriptor moved(MatrixDescriptor matrix, int bytes) { return matrix + (bytes >> 4); }

// The same, of which the compiler does not know that it is: what is `moved` from it is not computed before a
// loop, for more registers than there are.
__device__ __forceinline__ MatrixDescriptor found_anew(MatrixDescriptor matrix) {
#ifndef CUDASIM
  asm volatile("" : "+l"(matrix));
#endif
  return matrix;
}

// Before the first product, and wherever its registers were touched since.
__device__ __forceinline__ void wgmma_fence(PTX_ONLY_SITE) {
#ifdef CUDASIM
  cudasim::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit(PTX_ONLY_SITE) {
#ifdef CUDASIM
  cudasim::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most PENDING of the groups committed last are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait(PTX_ONLY_SITE) {
#ifdef CUDASIM
  cudasim::wgmma_wait(PENDING, site);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}

// After the wait: keeps the compiler from using registers of a product earlier.
template <int N>
__device__ __forceinline__ void wgmma_received(float (&d)[N][4]) {
#ifndef CUDASIM
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
#endif
}

// A copy that is made here and not earlier: what becomes an operand of the next products must not be put
// into its registers while products are under way, or ptxas lets these run one after another.
__device__ __forceinline__ unsigned copied_now(unsigned value) {
#ifdef CUDASIM
  return value;
#else
  unsigned copy;
  asm volatile("mov.b32 %0, %1;" : "=r"(copy) : "r"(value));
  return copy;
#endif
}

// What this thread has written to shared memory, cp.async that it has waited for too, may be read by
// products of those who meet it at a barrier afterwards.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef CUDASIM
  cudasim::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Registers of each thread of this warpgroup from here on; a multiple of 8.
template <int COUNT>
__device__ __forceinline__ void fewer_registers() {
#ifndef CUDASIM
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ __forceinline__ void more_registers() {
#ifndef CUDASIM
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// ---- products: A by descriptor (K-major) or in registers; TRANSPOSED: B is N-major --------------------
#ifdef CUDASIM
#define PTX_WGMMA(NAME, N, TYPE, ...)                                                                       \
  template <int TRANSPOSED>                                                                               \
  __device__ __forceinline__ void NAME(float (&d)[N / 8][4], MatrixDescriptor a, MatrixDescriptor b,      \
                                       bool accumulates PTX_SITE) {                                       \
    cudasim::wgmma({&d[0][0], nullptr, a, b, N, cudasim::SmallFloat::TYPE, TRANSPOSED != 0, accumulates},  \
                   site);                                                                                  \
  }                                                                                                       \
  template <int TRANSPOSED>                                                                               \
  __device__ __forceinline__ void NAME(float (&d)[N / 8][4], const unsigned (&a)[4], MatrixDescriptor b,  \
                                       bool accumulates PTX_SITE) {                                       \
    cudasim::wgmma({&d[0][0], a, 0, b, N, cudasim::SmallFloat::TYPE, TRANSPOSED != 0, accumulates}, site); \
  }
#else
#define PTX_ROW(I) "+f"(d[I][0]), "+f"(d[I][1]), "+f"(d[I][2]), "+f"(d[I][3])
#define PTX_ROWS_8(I)                                                                                     \
  PTX_ROW(I), PTX_ROW(I + 1), PTX_ROW(I + 2), PTX_ROW(I + 3), PTX_ROW(I + 4), PTX_ROW(I + 5), PTX_ROW(I + 6), \
      PTX_ROW(I + 7)
#define PTX_NAMES_32                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
  "%29,%30,%31"
#define PTX_NAMES_64                                                                                      \
  PTX_NAMES_32                                                                                            \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"  \
  "%58,%59,%60,%61,%62,%63"
#define PTX_NAMES_128                                                                                    \
  PTX_NAMES_64                                                                                           \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88" \
  ",%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110" \
  ",%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
// I0 to I6: numbers of the operands after those of d.
#define PTX_WGMMA(NAME, N, TYPE, NAMES, I0, I1, I2, I3, I4, I5, I6, ...)                                  \
  template <int TRANSPOSED>                                                                               \
  __device__ __forceinline__ void NAME(float (&d)[N / 8][4], MatrixDescriptor a, MatrixDescriptor b,      \
                                       bool accumulates) {                                                \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " I2 ", 0;\n"                                             \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" NAMES "}, " I0 ", " I1 \
                 ", p, 1, 1, 0, " I3 ";}"                                                                 \
                 : __VA_ARGS__                                                                            \
                 : "l"(a), "l"(b), "r"((int)accumulates), "n"(TRANSPOSED));                               \
  }                                                                                                       \
  template <int TRANSPOSED>                                                                               \
  __device__ __forceinline__ void NAME(float (&d)[N / 8][4], const unsigned (&a)[4], MatrixDescriptor b,  \
                                       bool accumulates) {                                                \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " I5 ", 0;\n"                                             \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE " {" NAMES "}, {" I0 "," I1 "," I2 \
                 "," I3 "}, " I4 ", p, 1, 1, " I6 ";}"                                                    \
                 : __VA_ARGS__                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulates), "n"(TRANSPOSED)); \
  }
#endif
PTX_WGMMA(wgmma_bf16, 64, bf16, PTX_NAMES_32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", PTX_ROWS_8(0))
PTX_WGMMA(wgmma_f16, 64, f16, PTX_NAMES_32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", PTX_ROWS_8(0))
PTX_WGMMA(wgmma_bf16, 128, bf16, PTX_NAMES_64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", PTX_ROWS_8(0),
          PTX_ROWS_8(8))
PTX_WGMMA(wgmma_f16, 128, f16, PTX_NAMES_64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", PTX_ROWS_8(0),
          PTX_ROWS_8(8))
PTX_WGMMA(wgmma_bf16, 256, bf16, PTX_NAMES_128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", PTX_ROWS_8(0),
          PTX_ROWS_8(8), PTX_ROWS_8(16), PTX_ROWS_8(24))
#undef PTX_WGMMA
#undef PTX_ROW
#undef PTX_ROWS_8
#undef PTX_NAMES_32
#undef PTX_NAMES_64
#undef PTX_NAMES_128

}  // namespace ptx

#undef PTX_SITE
#undef PTX_ONLY_SITE
