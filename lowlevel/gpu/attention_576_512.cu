// Fused attention for latent MLA: d_k 576, V its first 512 columns.
#define HEAD_K 576
#define HEAD_V 512
#include "attention_latent.cuh"
