"""The tokenizer in a model file: text to token ids and back, chat templates."""

from .tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
