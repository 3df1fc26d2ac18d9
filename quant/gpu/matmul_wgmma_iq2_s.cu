// Products of many rows of x with IQ2_S.
#include "iq2_s.cu"
#include "matmul_wgmma.cuh"
