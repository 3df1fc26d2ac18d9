"""The CUDA side of the ground floor, and what it shares with the simulator.

A kernel is a .cu file. `instances.py` lists every kernel and template instance there is; `loader.py`
reads the text and has it compiled; `kernel_device.py` holds what "cuda:N" and "cudasim" do alike;
`device.py` is a GPU, through CuPy, which `cupy_api.py` alone imports (it lists what only
a GPU can show). Nothing here imports CuPy, scipy or Numba until a GPU is asked for.
"""
