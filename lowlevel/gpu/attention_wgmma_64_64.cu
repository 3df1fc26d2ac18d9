// Fused attention on warpgroup products for d_k 64, d_v 64.
#define HEAD_K 64
#define HEAD_V 64
#include "attention_wgmma.cuh"
