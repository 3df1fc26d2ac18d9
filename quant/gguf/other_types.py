"""Tensor types of GGUF files that are no weights here: plain arrays, and those only known by name.

A file with such tensors opens all the same: they have names, shapes and bytes, and whoever uses one
as a weight is told what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType

if TYPE_CHECKING:
    from typing import Any


# Read as arrays. F16, BF16 and F32 are weights: see formats.py.
ARRAY_DTYPES: dict[Any, np.dtype] = {
    GGMLQuantizationType.F64: np.dtype("<f8"),
    GGMLQuantizationType.I8: np.dtype("<i1"),
    GGMLQuantizationType.I16: np.dtype("<i2"),
    GGMLQuantizationType.I32: np.dtype("<i4"),
    GGMLQuantizationType.I64: np.dtype("<i8"),
}
# Numbers that the gguf package may not know, by whose they are.
# fmt: off
_NAMES_OF = {
    "llama.cpp's": {40: "NVFP4", 41: "Q1_0", 42: "Q2_0"},
    "of old files, read by no engine now: convert the model anew": {
        4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    },
    "ik_llama.cpp's own": {
        36: "I2_S", 133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 137: "IQ2_K", 138: "IQ3_K",
        139: "IQ4_K", 140: "IQ5_K", 141: "IQ6_K", 144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS",
        151: "Q8_KV", 152: "IQ5_KS", 153: "IQ2_KT", 154: "IQ3_KT", 155: "IQ4_KT", 156: "IQ3_KS",
        157: "IQ2_KL", 158: "IQ1_KT", 202: "Q4_0_R8", 206: "Q5_0_R4", 208: "Q8_0_R8",
        210: "Q2_K_R4", 211: "Q3_K_R4", 212: "Q4_K_R4", 213: "Q5_K_R4", 214: "Q6_K_R4",
        216: "IQ2_XXS_R4", 217: "IQ2_XS_R4", 218: "IQ3_XXS_R4", 219: "IQ1_S_R4", 220: "IQ4_NL_R4",
        221: "IQ3_S_R4", 222: "IQ2_S_R4", 223: "IQ4_XS_R8", 229: "IQ1_M_R4", 230: "BF16_R16",
        233: "Q6_0_R4", 335: "IQ2_BN_R4", 337: "IQ2_K_R4", 338: "IQ3_K_R4", 339: "IQ4_K_R4",
        340: "IQ5_K_R4", 344: "IQ4_KS_R4", 352: "IQ5_KS_R4", 398: "Q8_KV_R8", 399: "Q8_K_R8",
    },
}
# fmt: on
_NAMES = {
    number: (name, whose) for whose, names in _NAMES_OF.items() for number, name in names.items()
}
OTHER_NUMBERS = {name: number for number, (name, _) in _NAMES.items()}


def type_name(qtype: Any) -> str:
    """GGUF's name of a tensor type, or ik_llama.cpp's; of an unknown number its digits.

    Parameters
    ----------
    qtype : gguf.GGMLQuantizationType or int
        An int is a number that the gguf package does not know.
    """
    if isinstance(qtype, GGMLQuantizationType):
        return qtype.name
    return _NAMES[qtype][0] if qtype in _NAMES else str(qtype)


def described(qtype: Any) -> str:
    """A type that is not supported, for an error message: ``"IQ2_K (137, ik_llama.cpp's own)"``.

    `qtype` is what `type_name` takes.
    """
    if qtype in ARRAY_DTYPES:
        return f"{qtype.name} ({ARRAY_DTYPES[qtype].name} numbers, no weights)"
    if isinstance(qtype, GGMLQuantizationType) or qtype not in _NAMES:
        return type_name(qtype)
    name, whose = _NAMES[qtype]
    return f"{name} ({qtype}, {whose})"
