"""Blocks to floats, a file a format; `runs.py` and `writers.py` are what formats share."""
