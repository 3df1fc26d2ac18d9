"""The memory shared with the runner processes: runtime/protocol.h, field by field."""

import ctypes
from ctypes import c_char, c_ubyte, c_uint32, c_uint64

MAX_EXTENTS = 64
MAX_PARAMETERS = 64
MAX_PARAMETER_BYTES = 4096
MAX_RUNNERS = 64
MAX_FRAMES = 16
OUTPUT_BYTES = 1 << 16

ORDERS = ("fifo", "reverse", "random", "lifo")

FLUSH_DENORMALS = 1
STRICT_BARRIERS = 2
GUARD_START = 4
EXACT_GUARDS = 8

# cudasim::kPoison: NaN as float64, float32, float16 and bfloat16.
POISON = 0xFFF7FFB5
# What lies around arguments and shared variables, by order. All NaN as float32 and as 16-bit floats, one also as
# float64. x86 and ARM keep a quiet NaN's bits through `x[n] += 1`, so that it would not show; of a signalling NaN they
# make a quiet one. A word cannot be that for float32 and float64 both: hence two.
_SIGNALLING_FLOAT32 = 0xFFB7FFB5
_SIGNALLING_FLOAT64 = POISON
GUARD_FILL = {
    "fifo": _SIGNALLING_FLOAT32,
    "reverse": _SIGNALLING_FLOAT64,
    "random": _SIGNALLING_FLOAT64,
    "lifo": _SIGNALLING_FLOAT32,
}


class Extent(ctypes.Structure):
    _fields_ = [
        ("address", c_uint64),
        ("file_offset", c_uint64),
        ("bytes", c_uint64),
        ("writable", c_uint32),
        ("padding", c_uint32),
    ]


class Region(ctypes.Structure):
    _fields_ = [
        ("begin", c_uint64),
        ("end", c_uint64),
        ("extent", c_uint32),
        ("element", c_uint32),
        ("name", c_char * 40),
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        ("library", c_char * 1024),
        ("kernel", c_uint32),
        ("grid", c_uint32 * 3),
        ("block", c_uint32 * 3),
        ("dynamic_shared", c_uint32),
        ("order", c_uint32),
        ("flags", c_uint32),
        ("hang_seconds", c_uint32),
        ("n_extents", c_uint32),
        ("n_regions", c_uint32),
        ("n_parameters", c_uint32),
        ("seed", c_uint64),
        ("next_block", c_uint64),
        ("failed", c_uint32),
        ("output_used", c_uint32),
        ("guard_fill", c_uint32),
        ("parameter_offset", c_uint32 * MAX_PARAMETERS),
        ("extents", Extent * MAX_EXTENTS),
        ("regions", Region * MAX_EXTENTS),
        ("padding", c_char * 40),
        ("parameters", c_ubyte * MAX_PARAMETER_BYTES),
        ("output", c_char * OUTPUT_BYTES),
    ]


class Report(ctypes.Structure):
    _fields_ = [
        ("fault", c_uint32),
        ("line", c_uint32),
        ("n_frames", c_uint32),
        ("n_other_frames", c_uint32),
        ("frames", c_uint64 * MAX_FRAMES),
        ("other_frames", c_uint64 * 1),
        ("block", c_uint32 * 3),
        ("thread", c_uint32 * 3),
        ("switches", c_uint64),
        ("blocks", c_uint64),
        ("file", c_char * 512),
        ("message", c_char * 1024),
    ]


class Control(ctypes.Structure):
    _fields_ = [
        ("launch", Launch),
        ("reports", Report * MAX_RUNNERS),
        ("description", c_char * (1 << 16)),
    ]
