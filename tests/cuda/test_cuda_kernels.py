"""The table of kernels: complete, tested, compiled for real, and no bigger than it says."""

import importlib
import importlib.resources
import pathlib
import re
import warnings

import pytest
from quant_cases import is_checked_in_every_way

from lowlevel.gpu import instances, loader, nvrtc, resources
from quant import FORMATS
from quant.gpu import constants
from quant.gpu import instances as products
from quant.gpu.dequantize import run as dequantize
from quant.gpu.matmul import plan as matmul_plan
from quant.gpu.matmul import sizes as matmul_sizes

ALL = instances.all_kernels()
SOURCES = sorted({kernel.source for kernel in ALL})
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def nvrtc_version():
    try:
        return nvrtc.version()
    except nvrtc.NvrtcMissingError as reason:
        message = f"the kernels are not compiled for GPUs: {reason}"
        warnings.warn(message)  # shown even where skipped tests are not
        pytest.skip(message)


def test_every_kernel_has_a_test():
    """A test module lists as KERNELS what it launches, each on its own (see `launched`)."""
    tested = set()
    for path in HERE.glob("test_*.py"):
        tested |= set(getattr(importlib.import_module(path.stem), "KERNELS", ()))
    missing = sorted(resources.key_of(kernel) for kernel in set(ALL) - tested)
    assert not missing, "kernels without a test: " + ", ".join(missing)


def test_every_kernel_awaits_earlier_ones():
    """First of all: launched as driver_launch.py does, it may start before what the one ahead wrote can be read."""
    first = re.compile(r"\{\s*ptx::await_earlier_kernels\(\);")
    n_found = 0
    for package in instances.packages():
        folder = pathlib.Path(str(importlib.resources.files(package)))
        for path in (*folder.rglob("*.cu"), *folder.rglob("*.cuh")):
            text = re.sub(r"//.*", "", path.read_text())
            for start in (match.end() for match in re.finditer(r"__global__", text)):
                body, depth = start, 0
                while depth or text[body] != "{":
                    depth += {"(": 1, ")": -1}.get(text[body], 0)
                    body += 1
                assert first.match(text, body), f"{path.name}: {text[start : body + 40]}"
                n_found += 1
    assert n_found > 30


def test_every_source_is_in_the_table():
    there = {
        (package, name)
        for package in instances.packages()
        for name in (
            *(file.name for file in importlib.resources.files(package).iterdir()),
            *instances.generated_files(package),
        )
        if name.endswith(".cu")
    }
    assert {package for package, _ in there} == {"lowlevel.gpu", "quant.gpu"}
    assert there == set(SOURCES)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source[1])
def test_every_kernel_of_a_source_is_in_the_table(source):
    """Also those of the headers it includes."""
    text = loader.source_text(*source)
    form = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\("
    found = re.findall(form, text)
    assert len(found) == text.count("__global__") > 0
    assert set(found) <= {kernel.name.split("<")[0] for kernel in ALL}


def test_names_are_unique():
    assert len(set(ALL)) == len(ALL) == len({(kernel.source, kernel.name) for kernel in ALL})


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source[1])
def test_launch_bounds_are_the_tables(source):
    """The table's block is what __launch_bounds__ says; grids have one axis."""
    text = loader.source_text(*source)
    for kernel in instances.of_source(source):
        function = kernel.name.split("<")[0]
        bounds = re.search(rf"__launch_bounds__\(([^)]*)\)\s*{function}\(", text)
        assert bounds, f"{kernel.name} has no __launch_bounds__"
        threads = bounds.group(1).split(",")[0]
        if (
            threads != "kThreads"
        ):  # WARPS * 32 of attention's sources, which have a test of their own
            number = re.search(rf"\b{threads} = (\d+)", text)
            assert int(number.group(1) if number else threads) == kernel.block, kernel.name
    assert not re.search(r"blockIdx\.[yz]|gridDim\.[yz]", text)


# What launchers know of kernels by numbers of their own: (number, where it stands, its name there).
NUMBERS = [
    (dequantize.TILE_VECTORS, "dequantize.cuh", "kTileThreads * kTileVectors"),
    (constants.UNIT_WEIGHTS, "matmul_formats.cuh", "kLaneWeights"),
    (matmul_plan.CHUNK_WEIGHTS, "matmul_formats.cuh", "kChunkWeights"),
    (products.STREAM_THREADS, "matmul_stream.cuh", "kStreamThreads"),
    (products.SINGLE_THREADS, "matvec.cuh", "kSingleThreads"),
    (matmul_sizes.EXACT_COLUMNS, "matmul_exact.cuh", "kExactColumns"),
]


def holds(file, facts):
    """Fail unless a compiler finds that all `facts`, C++ expressions, are true behind a source."""
    checks = "\n".join(f'static_assert({fact}, "");' for fact in facts)
    text = loader.source_text("quant.gpu", file) + "\n" + checks
    nvrtc.compile_program(text, file, loader.OPTIONS, (), "80")


@pytest.mark.parametrize("number, file, name", NUMBERS, ids=lambda value: str(value))
def test_launchers_know_the_kernels_numbers(number, file, name, nvrtc_version):
    holds(file, [f"{name} == {number}"])
    with pytest.raises(nvrtc.NvrtcCompileError):
        holds(file, [f"{name} == {number} + 1"])


def _shared_memory_of(block):
    """Rows of weights and shared memory of every kernel of a format: (as the launcher has it, in C++)."""
    name = block.name
    if not block.is_float:
        for tile in products.TILES:
            place = f"Tile<{name}, {tile.threads}, {tile.columns}>"
            yield matmul_sizes.tile_sizes(block, tile), f"{place}::kRows", f"{place}::kSharedBytes"
    exact = f"ExactTile<{name}>"
    tiles = f"4 * (kExactRows + kExactColumns) * {exact}::kPitch + kExactRows * {exact}::kRawPitch"
    yield matmul_sizes.exact_sizes(block), "kExactRows", tiles
    streams = [(True, n, f"FloatSums<{name}, {n}>") for n in products.EXACT_STREAM_COLUMNS]
    if not block.is_float:
        streams += [(False, n, f"ByteSums<{name}, {n}, ByteRows>") for n in products.STREAM_COLUMNS]
        streams += [(False, 1, f"ByteSums<{name}, 1, OwnByteRow<{name}>>")]
    for exact, n, sums in streams:
        yield (
            matmul_sizes.stream_sizes(block, exact, n, 8),
            f"{sums}::kRows",
            f"8 * {sums}::Rows::kWarpBytes",
        )


@pytest.mark.parametrize("block", FORMATS.values(), ids=lambda block: block.name)
def test_launchers_know_the_kernels_shared_memory(block, nvrtc_version):
    file = "matmul_floats.cu" if block.is_float else f"matmul_{block.name.lower()}.cu"
    holds(
        file,
        [
            fact
            for (n_rows, n_bytes), rows, shared in _shared_memory_of(block)
            for fact in (f"{rows} == {n_rows}", f"{shared} == {n_bytes}")
        ],
    )


@pytest.mark.parametrize(
    "block", [row for row in FORMATS.values() if not row.is_float], ids=lambda block: block.name
)
def test_launchers_know_the_shared_memory_of_warpgroups(block, nvrtc_version):
    facts = [
        f"WgmmaTile<{block.name}, {tile.threads}, {tile.columns}>::kSharedBytes == "
        f"{matmul_sizes.wgmma_shared(block, tile)}"
        for tile in products.WGMMA_TILES
    ]
    holds(f"matmul_wgmma_{block.name.lower()}.cu", facts)


@pytest.mark.parametrize("source", ["q2_k.cu", "matmul_wgmma_q2_k.cu"])
def test_lines_are_the_files_own(source):
    text = loader.source_text("quant.gpu", source).split("\n")
    assert text[0] == f'#line 1 "quant/gpu/{source}"'
    file, number = None, 0
    for line in text:
        marker = re.fullmatch(r'#line (\d+) "(.*)"', line)
        if marker:
            number, file = int(marker.group(1)), marker.group(2)
            continue
        made = instances.generated("quant.gpu", file.removeprefix("quant/gpu/"))
        own = (made or (HERE.parents[1] / file).read_text()).split("\n")[number - 1]
        assert line == own or (line == "" and own == "#pragma once")
        number += 1


def test_headers_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(loader, "_SHARED_HEADERS", ("lowlevel.gpu", "nowhere"))
    with pytest.raises(FileNotFoundError, match=r'quant/gpu/dequantize\.cuh:\d+: no "float_types'):
        loader.source_text("quant.gpu", "q2_k.cu")


def architectures_of(source):
    """Those that a source is for; of a format that has another's kernels but for unpacking one: see FIRST_OF_STRUCTURE."""
    kernels = instances.of_source(source)
    name = source[1].removesuffix(".cu").removeprefix("matmul_").removeprefix("wgmma_").upper()
    of_format = name in {row.name for row in FORMATS.values()}
    every = ("90a",) if of_format and not is_checked_in_every_way(name) else resources.ARCHITECTURES
    return [each for each in every if resources.is_for(kernels[0], each)]


# Whatever the table says it was measured of.
ALWAYS_COMPILED = {("concat.cu", "80"), ("q8_0.cu", "90a"), ("rope.cu", "120")}
COMPILED = [(source, each) for source in SOURCES for each in architectures_of(source)]


@pytest.mark.parametrize(
    "source, architecture", COMPILED, ids=lambda case: case if isinstance(case, str) else case[1]
)
def test_compiles_and_takes_what_the_table_says(source, architecture, nvrtc_version):
    """Compiled for real where the text is another than the table's numbers are of, and a few always."""
    table = resources.read_table()
    is_known = resources.is_measured(source, table, nvrtc_version)
    if is_known and (source[1], architecture) not in ALWAYS_COMPILED:
        numbers = table["kernels"]
        assert all(
            f"sm_{architecture}" in numbers[resources.key_of(kernel)]
            for kernel in instances.of_source(source)
        )
        return
    measured = {architecture: resources.measure(source, architecture)}
    assert len(measured[architecture]) == len(instances.of_source(source))
    assert not resources.breaches(measured, table, nvrtc_version)


def test_compile_errors_name_the_line(nvrtc_version):
    text = loader.source_text("quant.gpu", "q8_0.cu").replace("kQs + index", "kQz + index")
    (kernel, *_) = instances.of_source(("quant.gpu", "q8_0.cu"))
    lines = (HERE.parents[1] / "quant/gpu/q8_0.cu").read_text().split("\n")
    (number,) = (i for i, line in enumerate(lines, start=1) if "kQs + index" in line)
    with pytest.raises(nvrtc.NvrtcCompileError, match=rf"q8_0\.cu\({number}\): error.*kQz"):
        nvrtc.compile_program(text, "quant/gpu/q8_0.cu", loader.OPTIONS, (kernel.name,), "80")


def test_serialised_products_are_seen(nvrtc_version):
    source = "lowlevel.gpu", "attention_wgmma_192_128.cu"
    text = loader.source_text(*source)
    changed = text.replace("ptx::copied_now(next[i][0][j])", "next[i][0][j]")
    assert changed != text
    (name, *_) = (kernel.name for kernel in instances.of_source(source))
    program = nvrtc.compile_program(changed, source[1], loader.OPTIONS, (name,), "90a")
    assert resources.read_log(program.log)[program.lowered[name]]["serialised"]


# ---------------------------------------------------------------- breaches are found


def numbers(**changes):
    return {**dict(registers=32, stack=0, spills=0, shared=0), **changes}


@pytest.mark.parametrize(
    "now, version, reasons, expected",
    [
        (numbers(), "13.5", {}, None),
        (numbers(registers=33), "13.5", {}, "registers 33, the table says 32"),
        (numbers(registers=40), "13.6", {}, None),
        (numbers(registers=41), "13.6", {}, "registers 41, the table says 40"),
        (numbers(stack=16), "13.5", {}, "16 bytes of stack without a stated reason"),
        (numbers(spills=8), "13.6", {}, "8 bytes of spills without a stated reason"),
        (numbers(shared=1), "13.5", {}, "shared 1, the table says 0"),
        (numbers(serialised=True), "13.5", {}, "ptxas serialises its wgmma"),
    ],
)
def test_breaches(now, version, reasons, expected):
    key = resources.key_of(ALL[0])
    table = {"nvrtc": "13.5", "reasons": reasons, "kernels": {key: {"sm_80": [32, 0, 0, 0]}}}
    found = resources.breaches({"80": {key: now}}, table, version)
    assert found == [] if expected is None else any(expected in text for text in found)


def test_breaches_of_the_table_itself():
    key = resources.key_of(ALL[0])
    empty = {"nvrtc": "13.5", "reasons": {}, "kernels": {}}
    assert "not in the table" in resources.breaches({"80": {key: numbers()}}, empty, "13.5")[0]
    other = resources.key_of(ALL[1])
    partly = {**empty, "kernels": {key: {"sm_80": [32, 0, 0, 0]}, other: {"sm_100": [32, 0, 0, 0]}}}
    found = resources.breaches({"100": {key: numbers(registers=99)}}, partly, "13.5")
    assert [text for text in found if "sm_100: not in the table" in text]
    gone = {**empty, "kernels": {"gone.cu kernel": {}}}
    assert resources.breaches({}, gone, "13.5") == ["gone.cu kernel: in the table, but no kernel"]


def test_a_table_knows_what_it_was_measured_of(monkeypatch):
    """What is changed, measured in part, or was found to spill is not taken as measured."""
    source = "lowlevel.gpu", "concat.cu"
    kernels = instances.of_source(source)
    monkeypatch.setattr(instances, "all_kernels", lambda: kernels)
    keys = [resources.key_of(kernel) for kernel in kernels]
    old = {"nvrtc": "13.5", "reasons": {}, "kernels": {}}
    right = {a: {key: numbers() for key in keys} for a in resources.ARCHITECTURES}
    table = resources.new_table(right, old, "13.5")
    assert resources.is_measured(source, table, "13.5")
    assert not resources.is_measured(source, table, "13.6")
    assert resources.new_table({}, table, "13.5") == table  # nothing measured: nothing changes
    spilling = {**right, "120": {**right["120"], keys[-1]: numbers(spills=8)}}
    for measured in (spilling, {"80": right["80"]}):
        assert not resources.is_measured(source, resources.new_table(measured, old, "13.5"), "13.5")
    text_of = resources.source_text
    remark = "\n\n// It says why."
    monkeypatch.setattr(resources, "source_text", lambda *source: text_of(*source) + remark)
    assert resources.is_measured(source, table, "13.5")
    monkeypatch.setattr(resources, "source_text", lambda *source: text_of(*source) + "\nint n;")
    assert not resources.is_measured(source, table, "13.5")
    assert resources.new_table({"80": right["80"]}, table, "13.5")["texts"] == {}


def test_the_kept_table_lists_every_kernel():
    table = resources.read_table()
    assert set(table["kernels"]) == {resources.key_of(kernel) for kernel in ALL}
    for kernel in ALL:
        wanted = {f"sm_{a}" for a in resources.ARCHITECTURES if resources.is_for(kernel, a)}
        assert wanted and wanted <= set(table["kernels"][resources.key_of(kernel)])


def test_command(capsys, monkeypatch, nvrtc_version):
    only = [kernel for kernel in ALL if kernel.file == "concat.cu"]
    monkeypatch.setattr(instances, "all_kernels", lambda: only)
    table = resources.read_table()
    keys = {resources.key_of(kernel) for kernel in only}
    table["kernels"] = {key: of for key, of in table["kernels"].items() if key in keys}
    monkeypatch.setattr(resources, "read_table", lambda: table)
    assert resources.main(["--arch", "80"]) == 0
    assert "copy_strided<uint4>" in capsys.readouterr().out
    del table["kernels"][resources.key_of(only[0])]
    assert resources.main(["--arch", "80"]) == 1
    assert "not in the table" in capsys.readouterr().out
    assert resources.main(["--arch", "12"]) == 2
