// Products of many rows of x with Q5_0.
#include "q5_0.cu"
#include "matmul_wgmma.cuh"
