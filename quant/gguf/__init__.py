"""GGUF files: the header, read as from a hostile hand, and model files of one part or many."""
