"""The operations of models on the CPU: see lowlevel/ops. What loads Numba stands in the modules."""
