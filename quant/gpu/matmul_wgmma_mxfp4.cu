// Products of many rows of x with MXFP4.
#include "mxfp4.cu"
#include "matmul_wgmma.cuh"
