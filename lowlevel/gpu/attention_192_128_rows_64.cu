// Fused attention for d_k 192, d_v 128, at most 64 query rows of a K/V head: memory is what takes time.
#define HEAD_K 192
#define HEAD_V 128
#define TILE_ROWS 64
#define WARPS 4
#define STAGES_K 1
#define BLOCKS_PER_SM 3
#include "attention_fused.cuh"
