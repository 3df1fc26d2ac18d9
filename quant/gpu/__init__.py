"""CUDA kernels of block formats, a file a format, and their launchers; see `lowlevel.gpu`, which knows them once
this is imported."""

from . import instances

__all__ = ["instances"]
