"""Products on devices that run CUDA kernels: plan and launches; kernels are the room's `matmul_*.cu`."""
