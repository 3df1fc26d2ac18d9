"""``kqcap bench``: attention and products timed, beside peers and against bars."""
