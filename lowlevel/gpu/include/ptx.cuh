// The only place with inline PTX. On the device each function is one instruction; under the
// simulator (CUDASIM) it is the emulation in cudasim/runtime, with the same operands, so that
// everything around this seam is the very same source on both.
//
// Fragment layouts (g = lane / 4, t = lane % 4), as in the PTX ISA, mma.m16n8k16 for 16-bit types:
//   a[0] row g      k 2t, 2t+1      a[1] row g + 8  k 2t, 2t+1
//   a[2] row g      k 2t+8, 2t+9    a[3] row g + 8  k 2t+8, 2t+9
//   b0   column g   k 2t, 2t+1      b1   column g   k 2t+8, 2t+9
//   d[0], d[1] row g, columns 2t, 2t+1      d[2], d[3] row g + 8, columns 2t, 2t+1
// tf32 (k8): one value a register, k t and t + 4. s8 (k32): four, k 4t.. and 4t + 16...
#pragma once

#ifdef CUDASIM
#define PTX_SITE , cudasim::Site site = cudasim::Site::here()
#else
#define PTX_SITE
#endif

namespace ptx {

// A place in shared memory for copies and matrices: found once, where an address is else found anew for
// every one. `flipped`: with some bits of the address turned over.
#ifdef CUDASIM
typedef unsigned char* SharedPlace;
__device__ __forceinline__ SharedPlace shared_place(unsigned char* pointer) { return pointer; }
__device__ __forceinline__ SharedPlace flipped(SharedPlace place, unsigned bits) {
  return reinterpret_cast<SharedPlace>(reinterpret_cast<size_t>(place) ^ bits);
}
#else
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return (unsigned)__cvta_generic_to_shared(pointer);
}
typedef unsigned SharedPlace;
__device__ __forceinline__ SharedPlace shared_place(unsigned char* pointer) {
  unsigned place = shared_address(pointer);
  asm volatile("" : "+r"(place));
  return place;
}
__device__ __forceinline__ SharedPlace flipped(SharedPlace place, unsigned bits) { return place ^ bits; }
#endif

// ---- ldmatrix: N matrices of 8 x 8 16-bit values; lane l gives the address of row l % 8 of matrix
// l / 8 (16-byte aligned) ---------------------------------------------------------------------------
#ifdef CUDASIM
#define PTX_LDMATRIX(NAME, N, TRANSPOSED, SUFFIX, OUTPUTS, INPUT, ...)                             \
  __device__ __forceinline__ void NAME(unsigned (&r)[N], const void* row PTX_SITE) {              \
    cudasim::load_matrix(r, N, TRANSPOSED, row, site);                                            \
  }
#else
#define PTX_LDMATRIX(NAME, N, TRANSPOSED, SUFFIX, OUTPUTS, INPUT, ...)                             \
  __device__ __forceinline__ void NAME(unsigned (&r)[N], SharedPlace row) {                       \
    asm volatile("ldmatrix.sync.aligned.m8n8." SUFFIX ".shared.b16 {" OUTPUTS "}, [" INPUT "];"   \
                 : __VA_ARGS__                                                                    \
                 : "r"(row)                                                                       \
                 : "memory");                                                                     \
  }                                                                                               \
  __device__ __forceinline__ void NAME(unsigned (&r)[N], const void* row) {                       \
    NAME(r, shared_address(row));                                                                 \
  }
#endif
PTX_LDMATRIX(ldmatrix_x1, 1, false, "x1", "%0", "%1", "=r"(r[0]))
PTX_LDMATRIX(ldmatrix_x1_trans, 1, true, "x1.trans", "%0", "%1", "=r"(r[0]))
PTX_LDMATRIX(ldmatrix_x2, 2, false, "x2", "%0,%1", "%2", "=r"(r[0]), "=r"(r[1]))
PTX_LDMATRIX(ldmatrix_x2_trans, 2, true, "x2.trans", "%0,%1", "%2", "=r"(r[0]), "=r"(r[1]))
PTX_LDMATRIX(ldmatrix_x4, 4, false, "x4", "%0,%1,%2,%3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
             "=r"(r[3]))
PTX_LDMATRIX(ldmatrix_x4_trans, 4, true, "x4.trans", "%0,%1,%2,%3", "%4", "=r"(r[0]), "=r"(r[1]),
             "=r"(r[2]), "=r"(r[3]))
#undef PTX_LDMATRIX

// ---- mma.sync: d += a * b, A row by row, B column by column --------------------------------------
#ifdef CUDASIM
#define PTX_MMA(NAME, D, CONSTRAINT, TYPES)                                                        \
  __device__ __forceinline__ void NAME(D (&d)[4], const unsigned (&a)[4], unsigned b0,            \
                                       unsigned b1 PTX_SITE) {                                    \
    const unsigned b[2] = {b0, b1};                                                               \
    const cudasim::MmaOperands operands = {d, a, b};                                              \
    cudasim::publish(0xffffffffu, cudasim::Collective::kMma, site, &operands,                     \
                     cudasim::complete_##NAME);                                                   \
  }
#else
#define PTX_MMA(NAME, D, CONSTRAINT, TYPES)                                                        \
  __device__ __forceinline__ void NAME(D (&d)[4], const unsigned (&a)[4], unsigned b0,            \
                                       unsigned b1) {                                             \
    asm volatile("mma.sync.aligned." TYPES                                                        \
                 " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                         \
                 : "+" CONSTRAINT(d[0]), "+" CONSTRAINT(d[1]), "+" CONSTRAINT(d[2]),              \
                   "+" CONSTRAINT(d[3])                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                 \
  }
#endif
PTX_MMA(mma_m16n8k16_f16, float, "f", "m16n8k16.row.col.f32.f16.f16.f32")
PTX_MMA(mma_m16n8k16_bf16, float, "f", "m16n8k16.row.col.f32.bf16.bf16.f32")
PTX_MMA(mma_m16n8k8_tf32, float, "f", "m16n8k8.row.col.f32.tf32.tf32.f32")
PTX_MMA(mma_m16n8k32_s8, int, "r", "m16n8k32.row.col.s32.s8.s8.s32")
#undef PTX_MMA

// float32 to tf32, to the nearest, ties away from zero.
__device__ __forceinline__ unsigned to_tf32(float value) {
#ifdef CUDASIM
  return value != value ? 0x7fffffffu : (__float_as_uint(value) + 0x1000u) & 0xffffe000u;
#else
  unsigned result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
#endif
}

// ---- cp.async: global to shared memory, not complete before a wait. `source_bytes` < N: the rest
// is zeros; 0: nothing is read. 16 bytes bring the whole 128 that they lie in to the second-level cache,
// where the neighbours' copies find them -----------------------------------------------------------
#ifdef CUDASIM
#define PTX_CP_ASYNC(NAME, N, CACHE, PREFETCH)                                                     \
  __device__ __forceinline__ void NAME(void* shared, const void* global PTX_SITE) {               \
    cudasim::async_copy(shared, global, N, N, site);                                              \
  }                                                                                               \
  __device__ __forceinline__ void NAME##_zfill(void* shared, const void* global,                  \
                                               int source_bytes PTX_SITE) {                       \
    cudasim::async_copy(shared, global, N, source_bytes, site);                                   \
  }
#else
#define PTX_CP_ASYNC(NAME, N, CACHE, PREFETCH)                                                     \
  __device__ __forceinline__ void NAME(void* shared, const void* global) {                        \
    asm volatile("cp.async." CACHE ".shared.global" PREFETCH " [%0], [%1], %2;" ::"r"(             \
                     shared_address(shared)),                                                     \
                 "l"(global), "n"(N)                                                              \
                 : "memory");                                                                     \
  }                                                                                               \
  __device__ __forceinline__ void NAME##_zfill(void* shared, const void* global,                  \
                                               int source_bytes) {                                \
    asm volatile(                                                                                 \
        "cp.async." CACHE ".shared.global" PREFETCH " [%0], [%1], %2, %3;" ::"r"(                  \
            shared_address(shared)),                                                              \
        "l"(global), "n"(N), "r"(source_bytes)                                                    \
        : "memory");                                                                              \
  }
#endif
PTX_CP_ASYNC(cp_async_4, 4, "ca", "")
PTX_CP_ASYNC(cp_async_8, 8, "ca", "")
PTX_CP_ASYNC(cp_async_16, 16, "cg", ".L2::128B")
#undef PTX_CP_ASYNC

#ifndef CUDASIM
__device__ __forceinline__ void cp_async_16(SharedPlace shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global)
               : "memory");
}
#endif

__device__ __forceinline__ void cp_async_commit() {
#ifdef CUDASIM
  cudasim::async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's latest groups are in flight; a barrier must follow before
// other threads read what they brought.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#ifdef CUDASIM
  cudasim::async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

__device__ __forceinline__ void cp_async_wait_all() {
#ifdef CUDASIM
  cudasim::async_wait_all();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// ---- named barriers: `id` 1 to 15 (0 is __syncthreads), `n_threads` a multiple of 32 -------------
__device__ __forceinline__ void named_barrier_sync(int id, int n_threads PTX_SITE) {
#ifdef CUDASIM
  cudasim::barrier_sync(id, n_threads, false, site);
#else
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
#endif
}
__device__ __forceinline__ void named_barrier_arrive(int id, int n_threads PTX_SITE) {
#ifdef CUDASIM
  cudasim::barrier_arrive(id, n_threads, site);
#else
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
#endif
}

// ---- kernels one after the other -------------------------------------------------------------------
// The first thing that every kernel does. As driver_launch.py launches it, a kernel's blocks come when those of the kernel
// before have gone, and wait here until all that they wrote can be read. They must not come earlier: with
// griddepcontrol.launch_dependents before the wait, before it with a fence behind, and after it, 8 to 11 of 1700 tests
// found wrong values on an H200, each time others of those that decode K and V or store both of them and attend.
// Nobody has explained that; decoding would be another 5 to 8 % faster. Simulated launches end before the next begins.
__device__ __forceinline__ void await_earlier_kernels() {
#if !defined(CUDASIM) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- stores ---------------------------------------------------------------------------------------
// 16 bytes to global memory, to a multiple of 16. Assigned through a pointer they may become four
// stores, which the compiler joins again only where it sees the alignment itself.
__device__ __forceinline__ void store_16(void* address, uint4 value) {
#ifdef CUDASIM
  *static_cast<uint4*>(address) = value;
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
#endif
}

// ---- bytes ----------------------------------------------------------------------------------------
// Four of the eight bytes of b:a, as __byte_perm, by selectors whose nibbles' top bits are 0 in the
// lower 16 bits; it saves the instruction that clears them.
__device__ __forceinline__ unsigned permute(unsigned a, unsigned b, unsigned selectors) {
#ifdef CUDASIM
  return __byte_perm(a, b, selectors);
#else
  unsigned result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selectors));
  return result;
#endif
}

// The same for any selectors: where a nibble's top bit is 1, all eight bits of the result's byte are the
// top bit of the byte that the nibble's other bits name.
__device__ __forceinline__ unsigned permute_or_sign(unsigned a, unsigned b, unsigned selectors) {
#ifdef CUDASIM
  const unsigned signs = (__byte_perm(a, b, selectors & 0x7777) & 0x80808080u) >> 7;
  const unsigned which = (selectors >> 3 & 1) | (selectors >> 7 & 1) << 8 | (selectors >> 11 & 1) << 16 |
                         (selectors >> 15 & 1) << 24;
  return (__byte_perm(a, b, selectors & 0x7777) & ~(which * 255)) | ((signs & which) * 255);
#else
  unsigned result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selectors));
  return result;
#endif
}

// A constant in a register of each thread. Else it is put there again for every use beside another one.
__device__ __forceinline__ unsigned kept(unsigned constant) {
#ifdef CUDASIM
  return constant;
#else
  unsigned zero;
  asm("shr.u32 %0, %1, 20;" : "=r"(zero) : "r"(threadIdx.x));
  return constant + zero;
#endif
}

// The same value, of which the compiler does not know that it is the same: work of two branches that are
// alike is then not moved before the branch.
__device__ __forceinline__ float apart(float x) {
#ifndef CUDASIM
  asm volatile("" : "+f"(x));
#endif
  return x;
}

// ---- approximate functions ------------------------------------------------------------------------
// 2**x within 2 ulp; results below the smallest normal number are 0.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef CUDASIM
  const float result = exp2f(x);
  return result < 1.17549435e-38f ? 0.0f : result;
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

// tanh(x), relative error up to 2**-11.
__device__ __forceinline__ float tanh_approx(float x) {
#ifdef CUDASIM
  return tanhf(x);
#else
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

}  // namespace ptx

#undef PTX_SITE
