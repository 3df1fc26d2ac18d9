"""What each kernel takes of a GPU, measured without one: ``python -m quant.gpu.resources``, which imports those of all floors.

Compiles every kernel and template instance with NVRTC, reads registers, stack, spills and shared memory
from its log, prints them, and holds them against resources.json beside this file. Exit code 1: a
kernel spills or has a stack frame without a stated reason, takes more registers or shared memory than
the table says, or the table misses it or lists one that is gone. Exit code 2: NVRTC is not here.

The table is of one NVRTC version; under another, a kernel may take up to 8 registers more.
After a change that is meant, write the table anew with --update; it keeps the reasons. The table also has a
digest of each source that its numbers were measured of: what has not changed since need not be compiled again,
neither by --update nor by the tests.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import re
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from . import instances, nvrtc
from .loader import OPTIONS, display_name, source_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .instances import Kernel


# {kernel's key: {field: number}}, of one architecture; resources.json.
Measured: TypeAlias = dict[str, dict[str, Any]]
Table: TypeAlias = dict[str, Any]
TABLE = pathlib.Path(__file__).with_name("resources.json")
ARCHITECTURES = ("80", "90a", "120")
MORE_ARCHITECTURES = ("86", "89", "100")
FIELDS = ("registers", "stack", "spills", "shared")
REGISTERS_OF_A_BLOCK = 65536
# Registers that another version of NVRTC may take more than the table's.
TOLERANCE = 8
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_\w+'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SERIALISED = re.compile(r"wgmma.*are serialized.*in (?:the )?function '(\w+)'")


def key_of(kernel: Kernel) -> str:
    """A kernel's key in the table: "quant/gpu/q2_k.cu dequantize<Q2_K, Float32, true>"."""
    return f"{display_name(*kernel.source)} {kernel.name}"


def read_log(log: str) -> dict[str, dict[str, int]]:
    """{lowered name: {field: number}} of what ``--ptxas-options=-v`` says.

    Besides, "serialised" where ptxas lets products of warpgroups run one after another.
    """
    found = {}
    pieces = _ENTRY.split(log)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        stack, used, shared = _STACK.search(text), _USED.search(text), _SHARED.search(text)
        if not (stack and used):
            raise ValueError(f"NVRTC's log says nothing of the resources of {name}:\n{text}")
        found[name] = dict(
            registers=int(used.group(1)),
            stack=int(stack.group(1)),
            spills=int(stack.group(2)) + int(stack.group(3)),
            shared=int(shared.group(1)) if shared else 0,
        )
    for name in _SERIALISED.findall(log):
        found[name]["serialised"] = True
    return found


def digest_of(source: tuple[str, str]) -> str:
    """Digest of all that is compiled of a source, (package, file): its text but for comments, options and kernels."""
    names = [kernel.name for kernel in instances.of_source(source)]
    text = re.sub(r"//[^\n]*|^#line .*$", "", source_text(*source), flags=re.MULTILINE)
    compiled = json.dumps([text.split(), OPTIONS, names])
    return hashlib.sha256(compiled.encode()).hexdigest()[:16]


def is_measured(source: tuple[str, str], table: Table, version: str) -> bool:
    """Whether the table's rows for all of `ARCHITECTURES` are this version's, of this very text."""
    known = table.get("texts", {}).get(display_name(*source))
    return version == table["nvrtc"] and known == digest_of(source)


def is_for(kernel: Kernel, architecture: str) -> bool:
    """Whether an architecture has the instructions that a kernel wants."""
    return kernel.architecture in (None, architecture)


def measure(source: tuple[str, str], architecture: str) -> Measured:
    """{key: {field: number}} of all kernels of one source, (package, file)."""
    kernels = instances.of_source(source)
    program = nvrtc.compile_program(
        source_text(*source),
        display_name(*source),
        OPTIONS,
        [kernel.name for kernel in kernels],
        architecture,
    )
    found = read_log(program.log)
    return {key_of(kernel): found[program.lowered[kernel.name]] for kernel in kernels}


def _sources():
    return sorted({kernel.source for kernel in instances.all_kernels()})


def measure_all(
    architectures: Sequence[str],
    progress: Callable[[str], Any] = lambda text: None,
    but: Iterable[tuple[str, str]] = (),
) -> dict[str, Measured]:
    """{architecture: {key: {field: number}}} of every kernel there is, but for those of some sources."""
    sources = [source for source in _sources() if source not in but]
    result: dict[str, Measured] = {architecture: {} for architecture in architectures}
    with concurrent.futures.ThreadPoolExecutor() as threads:
        tasks = {
            threads.submit(measure, source, architecture): (source, architecture)
            for architecture in architectures
            for source in sources
            if is_for(instances.of_source(source)[0], architecture)
        }
        for task in concurrent.futures.as_completed(tasks):
            source, architecture = tasks[task]
            result[architecture].update(task.result())
            progress(f"{display_name(*source)} for sm_{architecture}")
    return result


def read_table() -> Table:
    return json.loads(TABLE.read_text())


def breaches(measured: dict[str, Measured], table: Table, version: str) -> list[str]:
    """What is wrong, one text each; empty if everything holds.

    Parameters
    ----------
    measured : dict
        See `measure_all`.
    table : dict
        nvrtc: the version; reasons: {key: why a stack frame or spills are right}; kernels: {key:
        {"sm_80": numbers as in `FIELDS`}}.
    version : str
        NVRTC's, of what was measured.
    """
    blocks = {key_of(kernel): kernel.block for kernel in instances.all_kernels()}
    columns = set().union(*table["kernels"].values())
    found = [f"{key}: in the table, but no kernel" for key in table["kernels"] if key not in blocks]
    for architecture, kernels in measured.items():
        for key, numbers in sorted(kernels.items()):
            where = f"{key}, sm_{architecture}"
            found += _forbidden(where, numbers, blocks[key], table["reasons"].get(key))
            known, column = table["kernels"].get(key), f"sm_{architecture}"
            if known is None or (column in columns and column not in known):
                found.append(f"{where}: not in the table (--update writes it)")
            elif column in known:
                limits = dict(zip(FIELDS, known[column], strict=True))
                if version != table["nvrtc"]:
                    limits["registers"] += TOLERANCE
                found += [
                    f"{where}: {field} {numbers[field]}, the table says {limits[field]}"
                    for field in FIELDS
                    if numbers[field] > limits[field]
                ]
    return found


def _forbidden(where, numbers, block, reason):
    if numbers["registers"] * block > REGISTERS_OF_A_BLOCK:
        yield f"{where}: {numbers['registers']} registers, too many for {block} threads a block"
    if numbers.get("serialised"):
        yield f"{where}: ptxas serialises its wgmma; see ptx::copied_now in wgmma.cuh"
    for field in ("stack", "spills"):
        if numbers[field] and not reason:
            yield f"{where}: {numbers[field]} bytes of {field} without a stated reason"


def new_table(measured: dict[str, Measured], old: Table, version: str) -> Table:
    """The table with what was measured; reasons, and what was not measured now, stay."""
    kept = old["kernels"] if version == old["nvrtc"] else {}
    kernels = {key_of(k): dict(kept.get(key_of(k), {})) for k in instances.all_kernels()}
    for architecture, of_kernels in measured.items():
        for key, numbers in of_kernels.items():
            kernels[key][f"sm_{architecture}"] = [numbers[field] for field in FIELDS]
    kernels = {key: of for key, of in sorted(kernels.items()) if of}
    reasons = {key: why for key, why in old["reasons"].items() if key in kernels}
    table = {"nvrtc": version, "fields": FIELDS, "reasons": reasons, "kernels": kernels}
    table["texts"] = {
        display_name(*source): digest_of(source)
        for source in _sources()
        if is_measured(source, old, version) or _is_whole_and_right(source, measured, table)
    }
    return table


def _is_whole_and_right(source, measured, table):
    """Whether a source was measured for all of `ARCHITECTURES`, and nothing forbidden was found."""
    for kernel in instances.of_source(source):
        key = key_of(kernel)
        for architecture in ARCHITECTURES:
            if not is_for(kernel, architecture):
                continue
            numbers = measured.get(architecture, {}).get(key)
            if numbers is None or any(
                _forbidden(key, numbers, kernel.block, table["reasons"].get(key))
            ):
                return False
    return True


def write_table(table: Table) -> None:
    """One line a kernel, so that differences read well.

    Raises
    ------
    RuntimeError
        No floor above has been imported: its kernels' rows would be lost.
    """
    if len(instances.packages()) < 2:
        raise RuntimeError(
            "resources.json has rows of several packages, and only this one's kernels are known: "
            "run python -m quant.gpu.resources, or import the others' packages first"
        )
    parts = []
    for name, value in table.items():
        if name in ("kernels", "texts"):
            rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(of)}" for key, of in value.items())
            parts.append(f' "{name}": {{\n{rows}\n }}')
        else:
            parts.append(f' "{name}": {json.dumps(value)}')
    TABLE.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def print_table(measured: dict[str, Measured]) -> None:
    """Kernels down, architectures across: registers, then stack, spills and shared where not 0."""
    names = list(measured)
    keys = sorted({key for of_kernels in measured.values() for key in of_kernels})
    wide = max(map(len, keys), default=0)
    print(f"{'registers':{wide}}" + "".join(f"{'sm_' + name:>9}" for name in names))
    for key in keys:
        cells, notes = "", []
        for name in names:
            numbers = measured[name].get(key)
            if numbers is None:
                cells += f"{'-':>9}"
                continue
            cells += f"{numbers['registers']:9}"
            rest = [f"{field} {numbers[field]}" for field in FIELDS[1:] if numbers[field]]
            notes += [f"sm_{name}: {', '.join(rest)}"] if rest else []
        print(f"{key:{wide}}{cells}  {'; '.join(notes)}".rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m quant.gpu.resources", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "--arch",
        default=",".join(ARCHITECTURES),
        help=f'architectures, such as "80,90a" (default {",".join(ARCHITECTURES)}), or "all"',
    )
    parser.add_argument("--update", action="store_true", help="write the table anew")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    names = (
        [*ARCHITECTURES, *MORE_ARCHITECTURES] if options.arch == "all" else options.arch.split(",")
    )

    def progress(text):
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    table = read_table() if TABLE.exists() else None
    try:
        version = nvrtc.version()
        table = table or {"nvrtc": version, "reasons": {}, "kernels": {}}
        unknown = [
            name for name in names if int(re.sub(r"\D", "", name) or 0) not in nvrtc.architectures()
        ]
        if unknown:
            print(f"--arch: NVRTC {version} does not know {', '.join(unknown)}", file=sys.stderr)
            return 2
        known = [s for s in _sources() if options.update and is_measured(s, table, version)]
        measured = measure_all(names, progress, but=known if names == [*ARCHITECTURES] else ())
    except nvrtc.NvrtcMissingError as error:
        print(error, file=sys.stderr)
        return 2
    except nvrtc.NvrtcCompileError as error:
        print(error, file=sys.stderr)
        return 1
    progress("")
    if options.update:
        table = new_table(measured, table, version)
        write_table(table)
    problems = breaches(measured, table, version)
    if options.json:
        print(json.dumps({"nvrtc": version, "measured": measured, "breaches": problems}, indent=1))
    else:
        print_table(measured)
        print("\n".join(problems) or f"all {len(table['kernels'])} kernels hold (NVRTC {version})")
    return 1 if problems else 0
