"""CUDA kernels of block formats, a file a format, and their launchers; see `lowlevel.gpu`."""
