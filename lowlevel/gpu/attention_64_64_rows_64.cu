// Fused attention for d_k 64, d_v 64, at most 64 query rows of a K/V head: memory is what takes time.
#define HEAD_K 64
#define HEAD_V 64
#define TILE_ROWS 64
#define WARPS 4
#define STAGES_K 2
#define BLOCKS_PER_SM 4
#include "attention_fused.cuh"
