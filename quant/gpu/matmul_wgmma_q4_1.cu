// Products of many rows of x with Q4_1.
#include "q4_1.cu"
#include "matmul_wgmma.cuh"
