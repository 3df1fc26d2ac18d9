"""CUDA kernels, their launchers and planner: what "cuda:N" and the simulator share.

A kernel is a .cu file. `instances.py` lists every kernel and template instance there is; `loader.py`
reads the text and has it compiled; `kernel_device.py` holds what the devices do alike. The devices
themselves are `lowlevel.cuda` (CuPy) and `lowlevel.cudasim` (the host).
"""
