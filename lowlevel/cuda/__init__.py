"""NVIDIA GPUs through CuPy: memory, launches and products, the thin layer under `lowlevel.gpu`.

`device.py` is a GPU; `cupy_api.py` alone imports CuPy (it lists what only a GPU can show); `cublas.py`
multiplies. Nothing here imports CuPy until a GPU is asked for.
"""
