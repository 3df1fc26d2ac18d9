"""Vectors as Numba types."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model

from .emit import f32, i1, i8, i16, i32

_ELEMENT = {
    "f32": f32,
    "i32": i32,
    "u16": i16,
    "u8": i8,
    "mask": i1,
}


class Vec(types.Type):
    """A Numba type for `lanes` values of `kind` (f32, i32, u16, u8 or mask) in one LLVM vector."""

    def __init__(self, kind: str, lanes: int) -> None:
        self.kind, self.lanes = kind, lanes
        super().__init__(name=f"{kind}x{lanes}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENT[self.kind], self.lanes)

    @property
    def floats(self) -> Vec:
        """The type of as many float32."""
        return Vec("f32", self.lanes)

    @property
    def mask(self) -> Vec:
        return Vec("mask", self.lanes)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


f32x16, i32x16, u16x16 = Vec("f32", 16), Vec("i32", 16), Vec("u16", 16)
u16x32 = Vec("u16", 32)
u8x16, u8x32, u8x64 = Vec("u8", 16), Vec("u8", 32), Vec("u8", 64)
mask16 = Vec("mask", 16)
