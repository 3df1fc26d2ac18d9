// Products of many rows of x with IQ3_S.
#include "iq3_s.cu"
#include "matmul_wgmma.cuh"
