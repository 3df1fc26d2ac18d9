"""The operations of models on devices that run CUDA kernels: see lowlevel/ops."""
