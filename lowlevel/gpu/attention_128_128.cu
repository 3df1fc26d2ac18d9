// Fused attention for d_k 128, d_v 128.
#define HEAD_K 128
#define HEAD_V 128
#include "attention_fused.cuh"
