"""Blocks to floats on devices that run CUDA kernels: launches of the room's kernels, a `.cu` file a format."""
