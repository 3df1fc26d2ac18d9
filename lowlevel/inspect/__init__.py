"""What reads the traces of pools: state and peaks, timeline, map, replay, export, checks.

`reader.py` reads lines that may be damaged or hostile, `run.py` adds them up, `state.py` is one pool at a
moment; the rest shows or judges.
"""
