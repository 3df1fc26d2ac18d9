"""``kqcap pool``: look into memory pools, alive or by their trace."""
