// Fused attention for d_k 128, d_v 128, at most 32 query rows of a K/V head: memory is what takes time.
#define HEAD_K 128
#define HEAD_V 128
#define TILE_ROWS 32
#define WARPS 2
#define STAGES_K 2
#define BLOCKS_PER_SM 4
#include "attention_fused.cuh"
