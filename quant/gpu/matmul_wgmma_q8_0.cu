// Products of many rows of x with Q8_0.
#include "q8_0.cu"
#include "matmul_wgmma.cuh"
