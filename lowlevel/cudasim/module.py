"""Compiled CUDA sources and their kernels, with the call shape of CuPy's RawModule."""

from __future__ import annotations

import importlib.resources
import operator
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

from . import protocol
from .arguments import Guard, MemoryLayout, Parameter, Variable, check_arguments
from .compiler import build_library
from .errors import CudaSimError, KernelAssertionError, LaunchError, MisalignedError
from .runner import POOL
from .settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Sequence


_MAX_THREADS = 1024
_MAX_BLOCK = (1024, 1024, 64)
_MAX_GRID = (2**31 - 1, 65535, 65535)
_DEFAULT_DYNAMIC_SHARED = 48 << 10  # without the opt-in, as on a device
_MAX_DYNAMIC_SHARED = 227 << 10  # sm_90, with it

# NVRTC options that change nothing here.
_IGNORED_OPTIONS = (
    "-std", "--std", "-lineinfo", "--generate-line-info", "-G",
    "--device-debug", "--maxrregcount", "-maxrregcount", "--ptxas-options", "-default-device",
    "--device-as-default-execution-space", "--prec-div", "-prec-div", "--prec-sqrt", "-prec-sqrt",
    "--extra-device-vectorization", "-extra-device-vectorization", "--relocatable-device-code",
)  # fmt: skip


class Module:
    """A CUDA source, compiled for the simulator.

    Parameters
    ----------
    source : str or path
        A .cu file, or "package:file.cu" for one that comes with a Python package.
    options : sequence of str
        As for NVRTC: -DNAME=VALUE, -UNAME, -IFOLDER, -arch=sm_80 (sets __CUDA_ARCH__; 900 without),
        --fmad=false, -ftz=true, --use_fast_math; some others are accepted and mean nothing. By
        default a * b + c becomes one fma, as on the device, and denormals are kept.
    name_expressions : sequence of str
        Template kernels to instantiate, such as "softmax<float, 128>".
    code : str, optional
        The text, where `source` is only the name for messages.

    Raises
    ------
    CompileError, CompilerNotFoundError
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        options: Sequence[str] = (),
        name_expressions: Sequence[str] = (),
        *,
        code: str | None = None,
    ) -> None:
        self.path: str
        self._text: str
        self.path, self._text = _read(source) if code is None else (str(source), code)
        self.name_expressions = tuple(name_expressions)
        self._flags, self._include_dirs, self.flush_denormals = _translate(options)
        self._libraries: dict[tuple[bool, bool], pathlib.Path] = {}
        self._described: Any = None
        now = current_settings()
        self.library(now.race, now.ub)

    def library(self, race: bool, ub: bool) -> pathlib.Path:
        """The path of the library compiled for these checking modes."""
        if (race, ub) not in self._libraries:
            self._libraries[race, ub] = build_library(
                self.path,
                self._text,
                self._flags,
                self._include_dirs,
                self.name_expressions,
                race,
                ub,
            )
        return self._libraries[race, ub]

    def _describe(
        self,
    ) -> tuple[dict[str, tuple[int, tuple[Parameter, ...]]], tuple[Variable, ...]]:
        """Ask a runner what the library holds: kernels by name, and variables with their first contents."""
        if self._described is not None:
            return self._described
        library = next(iter(self._libraries.values()))
        rows = [line.split("\t") for line in POOL.describe(library).splitlines()]
        rows_of_variables = [row[1:] for row in rows if row[0] == "__device__"]
        contents = POOL.initial_values(
            library, [int(n_bytes) for _, n_bytes, *_ in rows_of_variables]
        )
        variables = tuple(
            Variable(name, initial, int(element), int(address))
            for (name, _, element, address), initial in zip(
                rows_of_variables, contents, strict=True
            )
        )
        kernels = [row for row in rows if row[0] != "__device__"]
        by_name = {
            name: (index, _read_parameters(names, types))
            for index, (name, names, types) in enumerate(kernels)
        }
        self._described = by_name, variables
        return self._described

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The ``__device__`` variables: of this module alone, kept from launch to launch."""
        return self._describe()[1]

    def get_function(self, name: str) -> Function:
        """The kernel `name`: an extern "C" function, or one of the name expressions."""
        kernels, _ = self._describe()
        if name not in kernels:
            raise CudaSimError(
                f"{self.path}: no kernel {name!r}; there are {', '.join(kernels) or 'none'} (kernels "
                'are extern "C", or templates listed in name_expressions)'
            )
        return Function(self, name, *kernels[name])


class Function:
    """One kernel: ``function(grid, block, args, shared_mem=0)``.

    Attributes
    ----------
    name : str
    parameters : tuple of Parameter
    max_dynamic_shared_size_bytes : int
        As in CuPy: raise it before a launch with more than 48 KiB of dynamic shared memory.
    """

    def __init__(
        self, module: Module, name: str, index: int, parameters: tuple[Parameter, ...]
    ) -> None:
        self.module, self.name, self.parameters = module, name, parameters
        self._index = index
        self._wants_alignment = False  # found out that it loads vectors from arrays of less
        self.max_dynamic_shared_size_bytes = _DEFAULT_DYNAMIC_SHARED

    def __repr__(self):
        return f"<kernel {self.name} of {self.module.path} on the simulator>"

    def __call__(self, grid, block, args, *, shared_mem=0, **changes):
        """Run the kernel and wait for it.

        Parameters
        ----------
        grid, block : tuple of 1 to 3 int
        args : sequence
            Arrays (contiguous or not: the kernel gets the address of the first element), NumPy
            scalars of exactly the declared types, None for a null pointer, PointerTable.
        shared_mem : int
            Bytes of dynamic shared memory.
        **changes
            See `Settings`: order, seed, race, ub, strict, hang_seconds, workers.

        Raises
        ------
        ArgumentError, LaunchError
            Before anything runs.
        KernelError
            What the kernel did wrong; the arrays are then as before.
        """
        now = current_settings(**changes)
        grid = _shape(self.name, "grid", grid, _MAX_GRID)
        block = _shape(self.name, "block", block, _MAX_BLOCK)
        shared_mem = self._check_shared(shared_mem)
        n_threads = block[0] * block[1] * block[2]
        if n_threads > _MAX_THREADS:
            raise LaunchError(
                f"{self.name}: block {block} has {n_threads} threads; at most {_MAX_THREADS}"
            )
        args = tuple(args)
        check_arguments(self.name, self.parameters, args)
        # In race mode the access log sees every byte.
        exact = now.order in ("random", "lifo") and not now.race and not self._wants_alignment
        try:
            self._launch(grid, block, args, shared_mem, now, exact)
        except (MisalignedError, KernelAssertionError):
            if not exact:
                raise
            # Perhaps because arrays kept only the alignment of their elements: as a device has them.
            self._launch(grid, block, args, shared_mem, now, exact=False)
            self._wants_alignment = True

    def _launch(self, grid, block, args, shared_mem, now, exact):
        at_start = now.order in ("reverse", "lifo")
        guard = Guard(at_start, exact, protocol.GUARD_FILL[now.order])
        layout = MemoryLayout(self.parameters, args, guard, self.module.variables)
        values = layout.parameter_bytes(self.parameters, args)

        def record(launch):
            launch.kernel = self._index
            launch.grid[:], launch.block[:] = grid, block
            launch.dynamic_shared = shared_mem
            launch.order = protocol.ORDERS.index(now.order)
            launch.seed = now.seed
            launch.guard_fill = guard.fill
            launch.hang_seconds = now.hang_seconds
            launch.flags = (
                protocol.FLUSH_DENORMALS * self.module.flush_denormals
                | protocol.STRICT_BARRIERS * now.strict
                | protocol.GUARD_START * guard.at_start
                | protocol.EXACT_GUARDS * guard.exact
            )
            _write_parameters(launch, self.parameters, values)

        n_blocks = grid[0] * grid[1] * grid[2]
        # The access log of race mode lives in one process.
        workers = 1 if now.race else min(now.workers, n_blocks)
        library = self.module.library(now.race, now.ub)
        self.switches = POOL.launch(self.name, library, layout, record, workers)

    def _check_shared(self, shared_mem):
        n_bytes = operator.index(shared_mem)
        allowed = min(self.max_dynamic_shared_size_bytes, _MAX_DYNAMIC_SHARED)
        if not 0 <= n_bytes <= allowed:
            raise LaunchError(
                f"{self.name}: shared_mem={n_bytes}, but this kernel may have {allowed} bytes; set "
                f"max_dynamic_shared_size_bytes first (at most {_MAX_DYNAMIC_SHARED})"
            )
        return n_bytes


def _read(source):
    name = os.fspath(source)
    package, colon, file = name.partition(":")
    if colon and not pathlib.Path(name).exists():
        path = importlib.resources.files(package) / file
    else:
        path = pathlib.Path(name).resolve()
    return str(path), path.read_text(encoding="utf-8")


def _translate(options):
    """(flags for the host compiler, include folders, flush denormals?) of NVRTC options."""
    flags, include_dirs, fmad, flush, architecture = [], [], True, False, "900"
    for option in options:
        name, _, value = option.partition("=")
        if option.startswith(("-D", "-U")):
            flags.append(option)
        elif option.startswith("-I"):
            include_dirs.append(option[2:])
        elif name in ("-arch", "--gpu-architecture"):
            architecture = re.sub(r"\D", "", value) + "0"
        elif name in ("-fmad", "--fmad"):
            fmad = value == "true"
        elif name in ("-ftz", "--ftz"):
            flush = value == "true"
        elif name in ("--use_fast_math", "-use_fast_math"):
            flush = True
        elif name not in _IGNORED_OPTIONS:
            raise ValueError(
                f"options: {option!r} is unknown here; known are -D, -U, -I, -arch=, --fmad=, -ftz=, "
                f"--use_fast_math and, without effect, {', '.join(_IGNORED_OPTIONS)}"
            )
    flags.append(f"-D__CUDA_ARCH__={architecture}")
    flags.append(f"-ffp-contract={'fast' if fmad else 'off'}")
    shared_headers = pathlib.Path(__file__).resolve().parent.parent / "gpu" / "include"
    return tuple(flags), (*include_dirs, str(shared_headers)), flush


def _read_parameters(names, types):
    names = names.split(",")
    parameters = []
    for index, text in enumerate(types.split(";")[:-1]):
        code, count, n_bytes, pointee, alignment, is_const = text.split()
        name = names[index] if index < len(names) and names[index] else f"#{index}"
        parameters.append(
            Parameter(
                name, code, int(count), int(n_bytes), int(pointee), int(alignment), is_const == "1"
            )
        )
    return tuple(parameters)


def _shape(kernel, what, given, most):
    try:
        shape = tuple(operator.index(length) for length in given)
    except TypeError:
        raise LaunchError(
            f"{kernel}: {what}={given!r}: give a tuple of 1 to 3 whole numbers"
        ) from None
    if not 1 <= len(shape) <= 3:
        raise LaunchError(f"{kernel}: {what}={given!r}: give a tuple of 1 to 3 whole numbers")
    shape += (1,) * (3 - len(shape))
    if not all(1 <= length <= limit for length, limit in zip(shape, most, strict=True)):
        raise LaunchError(f"{kernel}: {what}={shape}: each at least 1, at most {most}")
    return shape


def _write_parameters(launch, parameters, values):
    offset = 0
    for index, (parameter, value) in enumerate(zip(parameters, values, strict=True)):
        alignment = 8 if parameter.pointee else max(parameter.alignment, 16)
        offset = -(-offset // alignment) * alignment
        launch.parameter_offset[index] = offset
        launch.parameters[offset : offset + len(value)] = value
        offset += len(value)
    launch.n_parameters = len(values)
