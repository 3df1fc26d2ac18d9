// Products of many rows of x with Q5_1.
#include "q5_1.cu"
#include "matmul_wgmma.cuh"
