"""Model files of given sizes with random weights: ``kqcap make-gguf``."""
