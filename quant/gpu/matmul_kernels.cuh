// All kernels of one block format.
#pragma once
#include "matvec.cuh"
#include "matmul_exact.cuh"
#include "matmul_tiles.cuh"
