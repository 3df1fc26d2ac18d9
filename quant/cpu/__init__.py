"""Numba kernels of block formats: dequantise, products, quantise."""
