"""From CUDA C++ to C++: the rewrites that macros cannot do.

They work on preprocessed text (no comments, macros expanded, line markers kept), so that they also
reach declarations in headers and macros, and never add or remove a line break: the compiler's
messages and debug information keep the source's own lines.

- ``__shared__`` and ``__device__`` variables become references into the runtime's guarded memory
  (source_variables.py).
- ``__global__`` functions are listed, with their parameters' names; their attributes become checks
  at the start of the kernel's body.
- Inline PTX and launches by ``<<< >>>`` are refused by file and line.
"""

from __future__ import annotations

import pathlib
import re
from typing import TYPE_CHECKING, NamedTuple

from .source_text import (
    IDENTIFIER,
    declared_name,
    end_of_group,
    line_breaks,
    place_of,
    split_top_level,
    statement_start,
    without_literals,
)
from .source_variables import rewrite_device, rewrite_shared

if TYPE_CHECKING:
    from collections.abc import Sequence


# What stands at a kernel, and the check that it becomes.
_ATTRIBUTES = {
    "__launch_bounds__": "cudasim::check_launch_bounds",
    "__cluster_dims__": "cudasim::check_cluster_dims",
    "__maxnreg__": None,  # registers mean nothing here
}
_END_OF_PRELUDE = "struct cudasim_end_of_prelude;"
_OWN_HEADERS = pathlib.Path(__file__).resolve().parent / "include"


class KernelDeclaration(NamedTuple):
    name: str
    parameters: tuple  # names, "" where none is given
    is_template: bool
    is_extern_c: bool


def rewrite(text: str) -> tuple[str, dict[str, KernelDeclaration]]:
    """`text` for the host compiler, and its kernels.

    Parameters
    ----------
    text : str
        Preprocessed CUDA source.

    Returns
    -------
    str, dict of str to KernelDeclaration

    Raises
    ------
    ValueError
        What cannot be rewritten, with its file and line.
    """
    start = text.index(_END_OF_PRELUDE)  # the prelude has nothing to rewrite, and is long
    own = text[start:]
    _refuse_ptx(own)
    _refuse_launches(own)
    own, kernels = _rewrite_kernels(own)
    return text[:start] + _keep_noinline(rewrite_device(rewrite_shared(own))), kernels


def kernel_table(entries: Sequence[tuple[str, KernelDeclaration | None]], race: bool) -> str:
    """The end of a compiled source: the table of kernels that the runner looks for.

    Parameters
    ----------
    entries : list of (str, KernelDeclaration or None)
        Expressions that name a kernel, and what is known of it.
    race : bool
    """
    rows = ""
    for expression, kernel in entries:
        parameters = ",".join(kernel.parameters) if kernel else ""
        rows += f'cudasim::make_kernel("{expression}", &{expression}, "{parameters}"), '
    export = 'extern "C" __attribute__((visibility("default")))'
    return (
        '\n# 1 "cudasim kernel table"\n'
        f"{export} cudasim::Kernel cudasim_kernels[] = {{ {rows}{{}} }};\n"
        f"{export} cudasim::BuiltIns cudasim_built_ins = "
        "{&threadIdx, &blockIdx, &blockDim, &gridDim, &cudasim_threads_per_block};\n"
        f"{export} bool cudasim_race_mode = {'true' if race else 'false'};\n"
    )


_ASSEMBLY = re.compile(r'\b(?:asm|__asm__|__asm)\b[\w\s]*\(\s*((?:"(?:\\.|[^"\\\n])*"\s*)+)')


def _refuse_ptx(text):
    for match in _ASSEMBLY.finditer(text):
        if not match[1].replace('"', "").strip():
            continue  # a barrier for the compiler
        file, line, is_system = place_of(text, match.start())
        if is_system or _OWN_HEADERS in pathlib.Path(file).parents:
            continue
        raise ValueError(
            f"{file}:{line}: inline PTX does not run here. Put it behind #ifndef CUDASIM with what it "
            "does as C++ beside it, or call the functions of ptx.cuh and wgmma.cuh "
            "(lowlevel/gpu/include), which are one on a device and the other here"
        )


def _refuse_launches(text):
    launch = re.search(r"\w\s*<<<", without_literals(text)) if "<<<" in text else None
    if launch:
        file, line, _ = place_of(text, launch.start())
        raise ValueError(
            f"{file}:{line}: a launch by <<< >>>: launch from Python, as Module(...).get_function(name)"
            "(grid, block, arguments), and put host code behind #ifndef CUDASIM; kernels that launch "
            "kernels are not simulated"
        )


def _keep_noinline(text):
    """CUDA's ``__noinline__`` as an attribute; the standard library's own attribute as it is."""

    def attribute(match):
        before = text[max(match.start() - 80, 0) : match.start()].rstrip()
        return "__noinline__" if before.endswith(("(", ",")) else "__attribute__((__noinline__))"

    return re.sub(r"\b__noinline__\b", attribute, text)


# ---- kernels ------------------------------------------------------------------------------------


def _rewrite_kernels(text):
    kernels, pieces, done = {}, [], 0
    extern_c_blocks = [
        (match.end() - 1, end_of_group(text, match.end() - 1))
        for match in re.finditer(r'\bextern\s+"C"\s*\{', text)
    ]
    for match in re.finditer(r"\b__global__\b", text):
        if match.start() < done:
            continue
        start = max(statement_start(text, match.start()), done)
        declarator = _read_declarator(text, match.end())
        if declarator is None:
            raise ValueError(f"cannot read the kernel declared by {text[match.start() :][:80]!r}")
        name, head, checks, parameters, end = declarator
        before, checks_before = _without_attributes(text[start : match.start()])
        prefix = before + text[match.end() : end]
        kernels[name] = KernelDeclaration(
            name=name,
            parameters=tuple(declared_name(part) for part in split_top_level(parameters))
            if parameters.strip() not in ("", "void")
            else (),
            is_template=re.search(r"\btemplate\b", before) is not None,
            is_extern_c=re.search(r'\bextern\s+"C"', prefix) is not None
            or any(start < match.start() < end for start, end in extern_c_blocks),
        )
        pieces += [text[done:start], before, head]
        done = end
        body = re.compile(r"\s*\{").match(text, end)
        if body:
            pieces += [text[end : body.end()], *checks_before, *checks]
            done = body.end()
    pieces.append(text[done:])
    return "".join(pieces), kernels


def _without_attributes(text):
    """What stands before ``__global__`` without the attributes of CUDA's, and their checks."""
    checks = []
    while found := re.search(rf"\b({'|'.join(_ATTRIBUTES)})\s*\(", text):
        end = end_of_group(text, found.end() - 1)
        checks.append(_check(found[1], text[found.end() : end - 1]))
        text = text[: found.start()] + line_breaks(text[found.start() : end]) + text[end:]
    return text, checks


def _check(attribute, values):
    function = _ATTRIBUTES[attribute]
    return f" {function}({' '.join(values.split())});" if function else ""


def _read_declarator(text, position):
    """After ``__global__``: (name, text to keep, checks, parameters, end)."""
    kept, checks, name = [], [], None
    token = re.compile(r'\s+|[A-Za-z_]\w*|"C"|\(|::|[<>,&*]|#.*')
    while True:
        match = token.match(text, position)
        if match is None:
            return None
        word = match.group()
        if word == "(":
            end = end_of_group(text, position)
            kept.append(text[position:end])
            return name and (name, "".join(kept), checks, text[position + 1 : end - 1], end)
        if word in (*_ATTRIBUTES, "__attribute__", "alignas"):
            start = text.index("(", match.end())
            position = end_of_group(text, start)
            if word in _ATTRIBUTES:
                checks.append(_check(word, text[start + 1 : position - 1]))
                kept.append(line_breaks(text[match.start() : position]))
            else:
                kept.append(text[match.start() : position])
            continue
        if IDENTIFIER.fullmatch(word):
            name = word
        kept.append(word)
        position = match.end()
