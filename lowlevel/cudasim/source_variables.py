"""Rewriting variables of CUDA's memory spaces: ``__shared__`` and ``__device__``."""

from __future__ import annotations

import re

from .source_text import (
    IDENTIFIER,
    FileScope,
    declared_name,
    end_of_group,
    place_of,
    split_top_level,
    statement_end,
    statement_start,
    without_literals,
)

# ---- shared memory ------------------------------------------------------------------------------


def rewrite_shared(text: str) -> str:
    """`text` with its ``__shared__`` declarations as include/cudasim/shared.h wants them."""
    matches = list(re.finditer(r"\b__shared__\b", text))
    file_scope = FileScope(text) if matches else ()
    pieces, done = [], 0
    for count, match in enumerate(matches):
        if match.start() < done:
            continue
        start = max(statement_start(text, match.start()), done)
        end = statement_end(text, start)
        statement, struct = text[start:end], f"cudasim_shared_{count}"
        is_dynamic = re.search(r"\bextern\b", statement) is not None
        if is_dynamic:
            declaration = _dynamic_declaration(statement, struct, match.start() in file_scope)
        elif match.start() in file_scope:
            file, line, _ = place_of(text, match.start())
            raise ValueError(
                f"{file}:{line}: a __shared__ variable at file scope: declare it inside the kernel and "
                "pass its address to functions (extern __shared__ may stand here)"
            )
        else:
            declaration = _static_declaration(statement, struct)
        pieces += [text[done:start], declaration]
        done = end + 1
    pieces.append(text[done:])
    return "".join(pieces)


def _dynamic_declaration(statement, struct, is_at_file_scope):
    declaration = re.sub(r"\b(__shared__|extern|static)\b", "", statement)
    name = declared_name(declaration)
    member = re.sub(r"\[\s*\]", "[1]", declaration, count=1)
    array = f"decltype({struct}::{name})"
    if is_at_file_scope:
        return (
            f"struct {struct} {{ {member}; }}; static std::remove_extent_t<{array}>* {name} = "
            f"cudasim::follow_dynamic_shared<{array}>(&{name}, alignof({struct}));"
        )
    return (
        f"struct {struct} {{ {member}; }}; auto* const {name} = "
        f"cudasim::dynamic_shared_array<{array}>(alignof({struct}));"
    )


def _static_declaration(statement, struct):
    # Inside a struct the declaration stays as it was written, whatever its type and attributes.
    declaration = re.sub(r"\b(__shared__|static)\b", "", statement)
    result = f"struct {struct} {{ {declaration}; }};"
    for declarator in split_top_level(declaration):
        name = declared_name(declarator)
        member = f"{struct}::{name}"
        result += (
            f' static cudasim::SharedVariable {struct}_{name} = {{"{name}", sizeof({member}), '
            f"alignof({struct}), cudasim::element_size<decltype({member})>(), nullptr, 0}};"
            f" auto& {name} = cudasim::shared<decltype({member})>({struct}_{name});"
        )
    return result


# ---- variables of the device --------------------------------------------------------------------

# What a declaration's reading stops at, or steps over.
_NEXT = re.compile(
    r"\b(?P<group>__attribute__|alignas|decltype)\s*\(|\b(?P<type>struct|class|union|enum)\b[^;{=(]*\{"
    r"|\b(?P<other>operator|template|typedef|using|friend|extern|constexpr)\b|(?P<stop>[(){}<>;=\[\],])"
)


def rewrite_device(text: str) -> str:
    """`text` without ``__device__``; variables at file scope become what
    include/cudasim/device_variables.h wants. What is constant stays a plain static."""
    matches = list(re.finditer(r"\b__cudasim_device__\b", text))
    file_scope = FileScope(text) if matches else ()
    pieces, done = [], 0
    for count, match in enumerate(matches):
        if match.start() < done:
            continue
        start = max(statement_start(text, match.start()), done)
        end = _variable_end(text, start) if match.start() in file_scope else None
        if end is None:
            pieces.append(text[done : match.start()])
            done = match.end()
        else:
            pieces += [
                text[done:start],
                _device_variables(text[start:end], f"cudasim_device_{count}"),
            ]
            done = end + 1
    pieces.append(text[done:])
    return "".join(pieces)


def _variable_end(text, start):
    """Index of the semicolon behind the variable declared at `start`; None: no variable, or constant."""
    position = start
    while found := _NEXT.search(text, position):
        if found["other"]:
            return None
        if found["group"] or found["type"]:
            position = end_of_group(text, found.end() - 1)
        elif found["stop"] == "<":
            position = _template_end(text, found.start())
        elif found["stop"] in ";=[{":
            head = text[start : found.start()]
            is_constant = re.search(r"\bconst\b", head) and "*" not in head
            names = IDENTIFIER.findall(head)
            return None if is_constant or len(names) < 2 else statement_end(text, start)
        else:
            return None
    return None


def _template_end(text, start):
    """Index after the angle bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"<": 1, ">": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError("unbalanced angle brackets")


def _device_variables(statement, namespace):
    declaration = re.sub(r"\b(__cudasim_device__|static|inline)\b", "", statement)
    result = f"namespace {namespace} {{ static {declaration}; }}"
    for declarator in split_top_level(declaration):
        name = declared_name(_without_bodies(declarator))
        result += (
            f' static auto& {name} = cudasim::device_variable({namespace}::{name}, "{name}", '
            f"__alignof__({namespace}::{name}));"
        )
    return result


def _without_bodies(declarator):
    declarator = without_literals(declarator)
    while "{" in declarator:
        start = declarator.index("{")
        declarator = declarator[:start] + " " + declarator[end_of_group(declarator, start) :]
    return declarator
