"""The operations of models on devices that run CUDA kernels: see lowlevel/ops."""

from lowlevel.ops.checks import FLOATS

ACTIVATIONS = FLOATS
