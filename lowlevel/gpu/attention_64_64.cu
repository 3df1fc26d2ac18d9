// Fused attention for d_k 64, d_v 64.
#define HEAD_K 64
#define HEAD_V 64
#define STAGES_K 2
#include "attention_fused.cuh"
