"""Numba kernels of block formats: dequantise, products, quantise."""

from lowlevel.cpu.jit import takes_constants_from

from .. import formats

takes_constants_from(__file__, formats.__file__)
