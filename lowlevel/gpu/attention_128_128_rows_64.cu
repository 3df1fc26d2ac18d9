// Fused attention for d_k 128, d_v 128, at most 64 query rows of a K/V head: memory is what takes time.
#define HEAD_K 128
#define HEAD_V 128
#define TILE_ROWS 64
#define WARPS 4
#define STAGES_K 2
#define BLOCKS_PER_SM 3
#include "attention_fused.cuh"
