// Fused attention for latent MLA on warpgroup products: d_k 576, V its first 512 columns or its last.
#define HEAD_K 576
#define HEAD_V 512
#include "attention_latent_wgmma.cuh"
