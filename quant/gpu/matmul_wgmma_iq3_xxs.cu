// Products of many rows of x with IQ3_XXS.
#include "iq3_xxs.cu"
#include "matmul_wgmma.cuh"
