"""Floats to blocks, the bytes that ggml makes, a file a format."""
