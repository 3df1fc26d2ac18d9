// Products of many rows of x with IQ1_M.
#include "iq1_m.cu"
#include "matmul_wgmma.cuh"
