// Products of many rows of x with Q2_K.
#include "q2_k.cu"
#include "matmul_wgmma.cuh"
