"""A GGUF writer for tests that writes what it is told, sense or nonsense."""

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALAR_CODES = dict(
    zip(
        (U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64),
        ("B", "b", "H", "h", "I", "i", "f", "?", "Q", "q", "d"),
        strict=True,
    )
)
F32_TENSOR, Q4_0_TENSOR, Q8_0_TENSOR, Q2_K_TENSOR = 0, 2, 8, 10


def text(value):
    """A GGUF string, of str or of raw bytes."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(value_type, value):
    return (
        text(value) if value_type == STRING else struct.pack("<" + SCALAR_CODES[value_type], value)
    )


def entry(key, value_type, value):
    """A metadata entry; an array's value_type is a pair (ARRAY, item type)."""
    if isinstance(value_type, tuple):
        item_type = value_type[1]
        items = b"".join(scalar(item_type, item) for item in value)
        return text(key) + struct.pack("<IIQ", ARRAY, item_type, len(value)) + items
    return text(key) + struct.pack("<I", value_type) + scalar(value_type, value)


def row(name, ne, tensor_type, offset, n_dims=None):
    """A tensor's row of the header; `ne` fastest axis first, as it stands in the file."""
    n_dims = len(ne) if n_dims is None else n_dims
    return (
        text(name)
        + struct.pack("<I", n_dims)
        + struct.pack(f"<{len(ne)}Q", *ne)
        + struct.pack("<IQ", tensor_type, offset)
    )


def header(entries, rows, version=3, magic=b"GGUF", n_tensors=None, n_metadata=None):
    counts = (
        len(rows) if n_tensors is None else n_tensors,
        len(entries) if n_metadata is None else n_metadata,
    )
    return magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(rows)


def padded(data, alignment=32):
    return data + bytes(-len(data) % alignment)
