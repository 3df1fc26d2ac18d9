// Products of many rows of x with Q6_K.
#include "q6_k.cu"
#include "matmul_wgmma.cuh"
