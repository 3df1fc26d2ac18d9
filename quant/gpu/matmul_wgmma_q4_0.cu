// Products of many rows of x with Q4_0.
#include "q4_0.cu"
#include "matmul_wgmma.cuh"
