// Force-included before every kernel source: CUDA's keywords, types and functions on the host.
// __global__ and __shared__ are no macros: source.py rewrites them after preprocessing.
#pragma once

// Before the macros: standard libraries use some of these names for themselves.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define CUDASIM 1
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1

#define __device__
#define __host__
#define __constant__ static
#define __managed__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __builtin_assume(condition) ((void)0)
#define __assume(condition) ((void)0)

#include <cudasim/runtime.h>
#include <cudasim/vector_types.h>
#include <cudasim/built_ins.h>
#include <cudasim/kernel_table.h>
#include <cudasim/shared.h>
#include <cudasim/synchronise.h>
#include <cudasim/warp.h>
#include <cudasim/atomics.h>
#include <cudasim/float_math.h>
#include <cudasim/integer_math.h>
#include <cudasim/memory_access.h>
