// Products of many rows of x with IQ4_XS.
#include "iq4_xs.cu"
#include "matmul_wgmma.cuh"
