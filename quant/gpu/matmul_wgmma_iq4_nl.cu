// Products of many rows of x with IQ4_NL.
#include "iq4_nl.cu"
#include "matmul_wgmma.cuh"
