// Products of many rows of x with IQ1_S.
#include "iq1_s.cu"
#include "matmul_wgmma.cuh"
