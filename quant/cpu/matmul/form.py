"""The form of products that suits the CPU."""

from . import dwords, pairs
from .layouts import FORM

form = {"dwords": dwords, "pairs": pairs}[FORM]
