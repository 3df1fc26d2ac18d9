"""The decoder of every format that CPU kernels know, by GGUF's name."""

from . import floats, q2_k, q3_k, q4_k, q6_k, q8_0, table4

DECODERS = {
    "F32": floats.F32,
    "F16": floats.F16,
    "BF16": floats.BF16,
    "Q8_0": q8_0.DECODER,
    "Q4_0": table4.Q4_0,
    "IQ4_NL": table4.IQ4_NL,
    "Q2_K": q2_k.DECODER,
    "Q3_K": q3_k.DECODER,
    "Q4_K": q4_k.DECODER,
    "Q6_K": q6_k.DECODER,
}
