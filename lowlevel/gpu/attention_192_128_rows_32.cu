// Fused attention for d_k 192, d_v 128, at most 32 query rows of a K/V head: memory is what takes time.
#define HEAD_K 192
#define HEAD_V 128
#define TILE_ROWS 32
#define WARPS 2
#define STAGES_K 1
#define BLOCKS_PER_SM 4
#include "attention_fused.cuh"
