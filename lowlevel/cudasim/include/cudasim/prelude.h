// Force-included before every kernel source: CUDA's keywords, types and functions on the host.
// __global__, __shared__ and __noinline__ are no macros: source.py rewrites them after preprocessing, and
// what __device__ becomes here.
#pragma once

// Before the macros: standard libraries use some of these names for themselves.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <type_traits>
#include <utility>

#define CUDASIM 1
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1

#define __device__ __cudasim_device__
#define __host__
#define __constant__ static
#define __managed__ __cudasim_device__
#define __forceinline__ inline __attribute__((always_inline))
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
#include <cudasim/device_variables.h>
#include <cudasim/synchronise.h>
#include <cudasim/warp.h>
#include <cudasim/atomics.h>
#include <cudasim/float_math.h>
#include <cudasim/rounding.h>
#include <cudasim/special_functions.h>
#include <cudasim/integer_math.h>
#include <cudasim/packed_integers.h>
#include <cudasim/memory_access.h>

#include <assert.h>  // the one beside cuda_runtime.h
#define printf cudasim::device_printf  // stdio.h, which takes it away, brings it back

struct cudasim_end_of_prelude;  // from here on source.py rewrites
