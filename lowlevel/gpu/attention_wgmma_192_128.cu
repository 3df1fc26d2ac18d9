// Fused attention on warpgroup products for d_k 192, d_v 128.
#define HEAD_K 192
#define HEAD_V 128
#include "attention_wgmma.cuh"
