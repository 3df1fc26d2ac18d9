"""The kernels' disk cache: found again, never stale, never mixed up, and not needed."""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

import quant.cpu
import quant.formats
from lowlevel.cpu import jit, kernel_cache

ROOT = pathlib.Path(__file__).parents[2]

# A package whose kernels stand in one file and inline what stands in others.
HELPERS = """
from lowlevel.cpu.jit import kernel

@kernel(inline=True)
def step(x):
    return x + 1
"""
KERNELS = """
import numpy as np
from lowlevel.cpu import simd
from lowlevel.cpu.jit import c_kernel, kernel
from .helpers import step

TABLE = np.array([1.0, 2.0])

@kernel
def plain(x):
    return 2 * step(x)

def make(helper, factor, table):
    @kernel
    def made(x):
        return factor * helper(x) + table[1]
    return made

@kernel(inline=True)
def down(x):
    return x - 1

ONE, TEN, DOWN = make(step, 1, TABLE), make(step, 10, TABLE), make(down, 10, TABLE)
OTHER_TABLE = make(step, 1, 2 * TABLE)
UP, LEFT = (make(kernel(f, inline=True), 1, TABLE) for f in (lambda x: x + 5, lambda x: x - 5))

def make_c(load):
    @c_kernel("int64(int64)")
    def made(address):
        return load(address)
    return made

BYTE, WORD = make_c(simd.read_u8), make_c(simd.read_u16)
"""
MAIN = """
import ctypes, json, sys
sys.path[:0] = [{root!r}, {home!r}]
from package import kernels as k
import numpy as np

data = np.array([0xFF01], np.uint16)
call = lambda c: ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(c.address)(data.ctypes.data)
made = (k.plain, k.ONE, k.TEN, k.DOWN, k.OTHER_TABLE, k.UP, k.LEFT)
values = [f(3) for f in made] + [call(k.BYTE), call(k.WORD)]
stats = [f.stats for f in made]
c_hits = sum(c._compiled.cache_hits for c in (k.BYTE, k.WORD))
print(json.dumps(dict(
    values=values,
    hits=sum(sum(s.cache_hits.values()) for s in stats) + c_hits,
    misses=sum(sum(s.cache_misses.values()) for s in stats),
)))
"""
VALUES = [8, 6, 42, 22, 8, 10, 0, 1, 0xFF01]
N_KERNELS = len(VALUES)


class Package:
    """The package in a folder of its own, beside a copy of lowlevel where that is to be changed."""

    def __init__(self, home, root=ROOT):
        self.home, self.root = home, root
        self.folder = home / "package"
        self.folder.mkdir()
        (self.folder / "__init__.py").write_text("")
        (self.folder / "helpers.py").write_text(HELPERS)
        (self.folder / "kernels.py").write_text(KERNELS)

    def command(self):
        main = MAIN.format(root=str(self.root), home=str(self.home))
        return [sys.executable, "-c", main]

    @property
    def cache(self):
        """Where the kernels of the package are kept: below the user's cache folder."""
        kernels = self.home / "cache" / "kqcap" / "kernels"
        source = str(self.folder / "kernels.py")
        return kernels / kernel_cache._Locator.get_suitable_cache_subpath(source)

    def environment(self, **more):
        kept = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
        return {**kept, "PYTHONPATH": "", "XDG_CACHE_HOME": str(self.home / "cache"), **more}

    def run(self, **environment):
        """(values, hits, misses) of a fresh process."""
        done = subprocess.run(
            self.command(), env=self.environment(**environment), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.stderr = done.stderr
        answer = json.loads(done.stdout)
        return answer["values"], answer["hits"], answer["misses"]

    def files(self):
        return sorted(self.cache.glob("*.nbc"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A package whose cache is filled; tests that change it take a copy."""
    package = Package(tmp_path_factory.mktemp("filled"))
    values, hits, _ = package.run()
    assert (values, hits) == (VALUES, 0)
    assert len(package.files()) == N_KERNELS
    said = package.stderr.splitlines()  # of nine kernels, once
    assert [line for line in said if "compiling kernels" in line] == said and len(said) == 1
    assert str(package.cache.parent) in said[0]
    return package


@pytest.fixture
def package(filled, tmp_path):
    """A copy: Numba looks at times and sizes of files, which stay."""
    copy = Package.__new__(Package)
    copy.home, copy.root, copy.folder = tmp_path, filled.root, tmp_path / "package"
    shutil.copytree(filled.folder, copy.folder)
    shutil.copytree(filled.cache, copy.cache)
    return copy


def test_every_kernel_is_found_again(package):
    """Also those that factories make, which differ in what they captured alone."""
    files = package.files()
    for seed in ("0", "7"):
        assert package.run(PYTHONHASHSEED=seed) == (VALUES, N_KERNELS, 0)
        assert package.stderr == ""
    assert package.files() == files


def test_a_change_of_an_inlined_helper_is_noticed(package):
    helpers = package.folder / "helpers.py"
    helpers.write_text(HELPERS.replace("x + 1", "x + 2"))
    changed = [10, 7, 52, 22, 9, 10, 0, 1, 0xFF01]
    values, hits, _ = package.run()
    assert (values, hits) == (changed, 0)
    assert package.run() == (changed, N_KERNELS, 0)
    assert len(package.files()) == N_KERNELS  # the old ones are gone


def test_a_change_of_the_simd_layer_is_noticed(tmp_path):
    root = tmp_path / "copy"
    for folder in ("", "attention", "cpu", "cpu/simd", "ops", "pool"):
        target = root / "lowlevel" / folder
        target.mkdir(parents=True, exist_ok=True)
        for file in (ROOT / "lowlevel" / folder).glob("*.py"):
            shutil.copy2(file, target)
    package = Package(tmp_path, root)
    assert package.run()[0] == VALUES
    simd = root / "lowlevel/cpu/simd/addresses.py"
    text = simd.read_text()
    read = "make_read_at(types.uint16, i16)"
    assert text.count(read) == 1
    simd.write_text(text.replace(read, "make_read_at(types.int16, i16)"))
    values, hits, _ = package.run()
    assert (values[-1], hits) == (0xFF01 - 2**16, 0)


def test_another_cpu_has_entries_of_its_own(package):
    values, hits, _ = package.run(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert (values, hits) == (VALUES, 0)
    assert package.run() == (VALUES, N_KERNELS, 0)


def test_damaged_files_are_compiled_anew(package):
    """A third of the kernels each finds an empty file, a part of one, one of another version."""
    damages = [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        # a pickle that names what this version does not have
        lambda content: b"clowlevel.cpu.simd\nno_such_name\n.",
    ]
    for i, file in enumerate(package.files()):
        file.write_bytes(damages[i % 3](file.read_bytes()))
    values, hits, _ = package.run()
    assert (values, hits) == (VALUES, 0)
    assert package.run() == (VALUES, N_KERNELS, 0)
    for file in package.files():  # what cannot be written over
        file.unlink()
        file.mkdir()
    values, hits, _ = package.run()
    assert (values, hits) == (VALUES, 0)


def test_files_of_numbas_own_cache_are_not_looked_at(package):
    """Indices and numbered files, as earlier versions of this project wrote them."""
    for file in package.files():
        base = file.name.rpartition(".py")[0]
        python = "py" + file.name.rpartition(".py")[2].partition(".")[0]
        (file.parent / f"{base}.{python}.nbi").write_bytes(b"no index")
    assert package.run() == (VALUES, N_KERNELS, 0)


def below_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    return str(file / "below")


def test_nothing_is_left_beside_the_sources(filled):
    """What pip installed is all that there is for pip to remove, bytecode aside."""
    left = [path for path in filled.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= {".py", ".pyc"} and filled.files()


def test_without_any_cache_folder(package, tmp_path):
    """Nowhere to write: everything works, compiled each time, and is said to be."""
    values, hits, _ = package.run(NUMBA_CACHE_DIR=below_a_file(tmp_path))
    assert (values, hits) == (VALUES, 0)
    assert "anew in each process" in package.stderr


def test_a_home_that_cannot_be_written(package, tmp_path):
    """What takes its place is a folder among the temporary ones that belongs to this user alone."""
    nowhere, temporary = below_a_file(tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    environment = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "TMPDIR": str(temporary)}
    assert package.run(**environment)[:2] == (VALUES, 0)
    assert package.run(**environment) == (VALUES, N_KERNELS, 0)
    (ours,) = temporary.iterdir()
    assert len(list(ours.rglob("*.nbc"))) == N_KERNELS


def test_a_folder_chosen_by_the_user(package, tmp_path):
    shutil.rmtree(package.cache)
    chosen = tmp_path / "chosen"
    environment = {"NUMBA_CACHE_DIR": str(chosen)}
    package.run(**environment)
    assert len(list(chosen.glob("*/*.nbc"))) == N_KERNELS
    assert not package.files()
    assert package.run(**environment) == (VALUES, N_KERNELS, 0)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_the_cache_not_the_call(package):
    """Every write of a cache file fails."""
    shutil.rmtree(package.cache)
    full = textwrap.dedent(
        """
        import builtins
        whole = builtins.open
        def open(file, mode="r", *args, **kwargs):
            return whole("/dev/full" if "w" in mode else file, mode, *args, **kwargs)
        builtins.open = open
        """
    )
    main = package.command()
    done = subprocess.run(
        [*main[:2], full + main[2]], env=package.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["values"] == VALUES
    assert not package.files()


def test_processes_that_compile_at_once(package):
    """They fill one cache together, and every kernel that is found there is the right one.

    With an index of numbered files, as Numba has it, two of them can give out the same number.
    """
    shutil.rmtree(package.cache)
    lesser = dict(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    running = [
        subprocess.Popen(
            package.command(), env=package.environment(**more), stdout=subprocess.PIPE, text=True
        )
        for more in ({}, lesser, {})
    ]
    for process in running:
        assert json.loads(process.communicate()[0])["values"] == VALUES
        assert process.returncode == 0
    assert package.run() == (VALUES, N_KERNELS, 0)
    assert package.run(**lesser) == (VALUES, N_KERNELS, 0)


def test_entries_cannot_be_mixed_up(tmp_path):
    """Two processes that save in each other's midst: each finds what it saved, and nothing else."""
    stamp = ("time and size", "digest")

    def files():
        return kernel_cache._CacheFiles(str(tmp_path), "module.function-7.py311", stamp)

    first, second = files(), files()
    write = first._save_data

    def write_after_the_other(name, data):
        second.save("second key", "second code")
        write(name, data)

    first._save_data = write_after_the_other
    first.save("first key", "first code")
    assert files().load("first key") == "first code"
    assert files().load("second key") == "second code"
    assert files().load("third key") is None


def test_what_tells_captured_values_apart():
    """Values that differ in anything that matters have identities that differ."""
    import numpy as np

    from lowlevel.cpu import simd
    from lowlevel.cpu.jit import kernel

    def make(value):
        return lambda x: x + value

    values = [
        1, 2, 1.0, "1", None, True, (), (1,), (1, 2), ((1,), 2),
        np.float32(1), np.float64(1), np.zeros(3), np.zeros(4), np.zeros(3, "i8"), np.ones(3),
        simd.load_f32x16, simd.load_i32x16, simd.read_u8, simd.f32x16, simd.i32x16,
        make(1), make(2), make(simd.read_u8), make(simd.read_u16), make(make(1)), make(make(2)),
        kernel(make(3), inline=True), kernel(make(4), inline=True),
        *(lambda x: x + 1, lambda x: x + 2, lambda x, y=1: x, lambda x, y=2: x),
        *(lambda x: x in {1, 2}, lambda x: x in {1, 3}, lambda x: (lambda: 5), lambda x: (lambda: 6)),
    ]  # fmt: skip
    identities = [repr(kernel_cache._identity(value)) for value in values]
    for (i, a), (j, b) in itertools.combinations(enumerate(identities), 2):
        assert a != b, (values[i], values[j])
    for identity in identities:
        assert " at 0x" not in identity, identity  # the same in every process


def test_constants_from_a_table_make_kernels_anew(tmp_path):
    """A package's kernels are compiled anew when a file changes that it takes numbers from."""
    room, table = tmp_path / "cpu", tmp_path / "table.py"
    room.mkdir()
    table.write_text("BYTES = 18")
    (room / "__init__.py").write_text("")
    jit.takes_constants_from(str(room / "__init__.py"), str(table))
    digest = jit._sources_digest.__wrapped__
    before = digest(room)
    assert digest(room) == before
    table.write_text("BYTES = 20")
    assert digest(room) != before


def test_kernels_of_formats_depend_on_the_table_of_formats():
    assert pathlib.Path(quant.formats.__file__) in jit._tables[ROOT / "quant/cpu"]
