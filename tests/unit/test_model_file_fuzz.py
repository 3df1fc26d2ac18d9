"""Mutated headers: every one is either refused with a clear error or read exactly as it stands."""

import os
import random
import secrets
import struct
import time
import tracemalloc

import gguf_bytes as gb
import pytest

from quant.gguf.header import ARRAY, SCALARS, STRING, ModelFileError, decode, read_header

N_MUTANTS = int(os.environ.get("KQCAP_FUZZ", 20_000))
HOSTILE = (0, 1, 2, 5, 8, 9, 31, 33, 255, *(2**n + d for n in (16, 31, 32, 48, 62, 63) for d in (-1, 0)), 2**64 - 1)  # fmt: skip


def valid_file():
    """A small valid file with every value type, several tensors and all its data."""
    entries = [
        gb.entry("general.architecture", gb.STRING, "llama"),
        gb.entry("general.alignment", gb.U32, 32),
        gb.entry("ключ", gb.STRING, "значение"),
        gb.entry("empty", gb.STRING, ""),
        gb.entry("tokens", (gb.ARRAY, gb.STRING), ["a", "", "ß", "four"]),
        gb.entry("no tokens", (gb.ARRAY, gb.STRING), []),
        gb.entry("flags", (gb.ARRAY, gb.BOOL), [True, False, True]),
        gb.entry("scores", (gb.ARRAY, gb.F32), [0.5, -1.0]),
        gb.entry("counts", (gb.ARRAY, gb.I64), [-1, 2**62]),
    ]
    entries += [gb.entry(f"s{code}", code, 1) for code in gb.SCALAR_CODES]
    rows = [
        gb.row("a", (32, 3), gb.Q8_0_TENSOR, 0),  # 102 bytes
        gb.row("b", (5,), gb.F32_TENSOR, 128),  # 20 bytes
        gb.row("c", (256, 2, 1, 2), gb.Q2_K_TENSOR, 160),  # 336 bytes
        gb.row("d", (7,), 777, 512),  # an unknown type
        gb.row("e", (), gb.F32_TENSOR, 544),  # no axes: 4 bytes
        gb.row("f", (0, 3), gb.Q8_0_TENSOR, 576),  # empty
    ]
    return gb.padded(gb.header(entries, rows)) + bytes(range(256)) * 2 + bytes(64)


def rebuilt_entry(data, key, value):
    """A metadata entry's bytes, made from what the parser says of it."""
    decoded = decode("fuzz", data, key, value)
    start = gb.text(key) + struct.pack("<I", value.type)
    if value.count is not None:
        start = gb.text(key) + struct.pack("<IIQ", ARRAY, value.type, value.count)
        assert len(decoded) == value.count
    if value.type == STRING:
        return start + b"".join(map(gb.text, decoded if value.count is not None else [decoded]))
    name, dtype = SCALARS[value.type]
    raw = data[value.offset : value.offset + dtype.itemsize * (value.count or 1)]
    if value.count == 0:
        raw = b""
    elif name == "bool":  # any byte but 0 is true
        assert [byte != 0 for byte in raw] == (list(decoded) if value.count else [decoded])
    elif value.count:
        assert decoded.tobytes() == raw
    elif decoded == decoded:  # NaN has many forms
        assert struct.pack("<" + gb.SCALAR_CODES[value.type], decoded) == raw
    return start + raw


def check_accepted(data, parsed):
    """The right answer: what was parsed says exactly what the bytes say, and lies inside the file."""
    try:
        entries = [rebuilt_entry(data, key, value) for key, value in parsed.metadata.items()]
    except ModelFileError:
        return False  # a value refused when it was asked for (invalid UTF-8): a clear error too
    rows = [
        gb.row(info.name, info.shape[::-1], int(info.qtype), info.offset - parsed.data_start)
        for info in parsed.tensors.values()
    ]
    rebuilt = gb.header(entries, rows, version=parsed.version)
    assert data[: len(rebuilt)] == rebuilt
    assert parsed.data_start == -(-len(rebuilt) // parsed.alignment) * parsed.alignment
    end = parsed.data_start
    for info in sorted(parsed.tensors.values(), key=lambda info: info.offset):
        if 0 in info.shape:
            assert info.n_bytes == 0
            continue
        assert end <= info.offset and info.n_bytes > 0
        end = info.offset + info.n_bytes
    assert not parsed.tensors or end <= len(data)
    return True


def mutate(data, numbers, n_header):
    """`data` with one to four bytes, numbers or stretches of its header changed."""
    data = bytearray(data)
    for _ in range(numbers.choice((1, 1, 1, 2, 4))):
        at = numbers.randrange(min(n_header, len(data)) + 1)
        n_bytes = numbers.choice((1, 2, 4, 8, 30))
        changes = (
            (1, numbers.randbytes(1)),
            (1, bytes(byte ^ (1 << numbers.randrange(8)) for byte in data[at : at + 1])),
            (8, struct.pack("<Q", numbers.choice(HOSTILE))),
            (4, struct.pack("<I", numbers.choice(HOSTILE) & 0xFFFFFFFF)),
            (n_bytes, b""),
            (0, bytes(data[at : at + n_bytes])),
            (0, numbers.randbytes(n_bytes)),
            (len(data), b""),
        )
        n_replaced, new = numbers.choice(changes)
        data[at : at + n_replaced] = new
    return bytes(data)


def test_mutated_headers():
    seed = secrets.randbits(32)
    numbers = random.Random(seed)
    original = valid_file()
    n_header = read_header("fuzz", original).data_start
    assert check_accepted(original, read_header("fuzz", original))
    outcomes = {"refused": 0, "accepted": 0}
    tracemalloc.start()
    try:
        for index in range(N_MUTANTS):
            data = mutate(original, numbers, n_header)
            started = time.perf_counter()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                parsed = read_header("fuzz", data)
            except ModelFileError as error:
                assert str(error).startswith("fuzz: "), f"seed {seed}, mutant {index}: {error}"
                parsed = None
            except Exception as error:
                raise AssertionError(f"seed {seed}, mutant {index}: {error!r}") from error
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken < 2**18, f"seed {seed}, mutant {index} took {taken} bytes"
            assert time.perf_counter() - started < 30, f"seed {seed}, mutant {index} hangs"
            try:
                accepted = parsed is not None and check_accepted(data, parsed)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, mutant {index}") from error
            outcomes["accepted" if accepted else "refused"] += 1
    finally:
        tracemalloc.stop()
    # Both verdicts are really exercised.
    assert min(outcomes.values()) > N_MUTANTS // 50, outcomes


def test_every_truncation_is_refused():
    data = valid_file()
    last_byte_of_tensors = max(
        info.offset + info.n_bytes
        for info in read_header("cut", data).tensors.values()
        if info.n_bytes
    )
    assert last_byte_of_tensors == len(data) - 32 + 4
    for size in range(last_byte_of_tensors):
        with pytest.raises(ModelFileError, match="cut: "):
            read_header("cut", data[:size])
    read_header("cut", data[:last_byte_of_tensors])


def test_random_bytes_after_a_valid_start():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    for _ in range(500):
        start = valid_file()[: numbers.choice((4, 8, 16, 24, 60))]
        with pytest.raises(ModelFileError):
            read_header("noise", start + numbers.randbytes(500))
