// Products of many rows of x with Q3_K.
#include "q3_k.cu"
#include "matmul_wgmma.cuh"
