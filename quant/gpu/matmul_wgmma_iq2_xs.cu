// Products of many rows of x with IQ2_XS.
#include "iq2_xs.cu"
#include "matmul_wgmma.cuh"
