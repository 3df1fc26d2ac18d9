// Products of many rows of x with Q5_K.
#include "q5_k.cu"
#include "matmul_wgmma.cuh"
