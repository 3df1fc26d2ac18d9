// Products of many rows of x with IQ2_XXS.
#include "iq2_xxs.cu"
#include "matmul_wgmma.cuh"
