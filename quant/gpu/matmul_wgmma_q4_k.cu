// Products of many rows of x with Q4_K.
#include "q4_k.cu"
#include "matmul_wgmma.cuh"
