"""Numba's classes that kqcap subclasses: those not meant for it are named here, and setup.cfg bounds Numba's version.

A new version of Numba that passes the tests with its bound raised in setup.cfg may be let in.
"""

import configparser
import importlib
import pathlib
import pkgutil
import re

import numba
import pytest
from numba.core import caching, codegen, compiler, dispatcher, extending, typed_passes

import lowlevel.cpu
import quant.cpu

ROOT = pathlib.Path(__file__).parents[2]

# Each with what is overridden, called or set of it. `numba.types`, `numba.extending.models` and
# `typing.templates` are subclassed as Numba's manual tells extensions to.
PRIVATE = {
    caching.IndexDataCacheFile: "load save flush _load_data _save_data",
    caching._SourceFileBackedLocatorMixin: "get_source_stamp",
    caching._CacheLocator: "get_cache_path get_suitable_cache_subpath from_function",
    caching.CompileResultCacheImpl: "_locator_classes locator filename_base",
    caching.FunctionCache: "_impl_class _index_key load_overload save_overload cache_path",
    caching.NullCache: "load_overload save_overload",
    codegen.JITCodeLibrary: "_optimize_functions _optimize_final_module _finalize_final_module _finalize_dynamic_globals",
    typed_passes.NativeLowering: "run_pass",
    compiler.CompilerBase: "define_pipelines",
}
MEANT_FOR_IT = ("numba.core.types.", "numba.core.datamodel.", "numba.core.typing.templates")


def _classes():
    """Every class that a module of lowlevel or quant for the CPU makes."""
    for package in (lowlevel.cpu, quant.cpu):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            names = vars(importlib.import_module(module.name))
            yield from (
                kind
                for kind in names.values()
                if isinstance(kind, type) and kind.__module__ == module.name
            )


def test_the_classes_are_those_that_are_named():
    bases = {base for kind in _classes() for base in kind.__bases__}
    of_numba = {base for base in bases if base.__module__.startswith("numba.")}
    assert {base for base in of_numba if not base.__module__.startswith(MEANT_FOR_IT)} == set(
        PRIVATE
    )


@pytest.mark.parametrize("base", PRIVATE, ids=lambda base: base.__name__)
def test_they_have_what_is_used(base):
    missing = [name for name in PRIVATE[base].split() if not hasattr(base, name)]
    assert missing == []


def test_functions_of_kernels_and_of_intrinsics_are_found():
    """By which `kernel_cache` tells one captured helper from another."""
    helper = numba.njit(lambda x: x)
    assert isinstance(helper, dispatcher.Dispatcher) and callable(helper.py_func)
    helper = extending.intrinsic(lambda context, x: None)
    assert isinstance(helper, extending._Intrinsic) and callable(helper._defn)


def test_the_version_is_bounded():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (line,) = re.findall(r"^numba.*$", setup["options"]["install_requires"], re.MULTILINE)
    bounds = re.fullmatch(r"numba>=(\d+)\.(\d+),<(\d+)\.(\d+)", line).groups()
    lowest, beyond = tuple(map(int, bounds[:2])), tuple(map(int, bounds[2:]))
    installed = tuple(map(int, numba.__version__.split(".")[:2]))
    assert lowest <= installed < beyond
