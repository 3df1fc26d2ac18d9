// Host stand-in for CUDA's cuda_pipeline.h: the functions in C; nvcuda::experimental::pipeline is not here.
#pragma once
#include <cuda_pipeline_primitives.h>
