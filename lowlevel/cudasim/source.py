"""From CUDA C++ to C++: the two rewrites that macros cannot do.

They work on preprocessed text (no comments, macros expanded, line markers kept), so that they also
reach declarations in headers and macros, and never add or remove a line break: the compiler's
messages and debug information keep the source's own lines.

- ``__shared__`` declarations become references into the runtime's guarded memory (shared.h).
- ``__global__`` functions are listed, with their parameters' names; ``__launch_bounds__`` becomes
  a check at the start of the kernel's body.
"""

import re
from typing import NamedTuple

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_OPENING, _CLOSING = "([{", ")]}"


class KernelDeclaration(NamedTuple):
    name: str
    parameters: tuple  # names, "" where none is given
    is_template: bool
    is_extern_c: bool


def rewrite(text):
    """`text` for the host compiler, and its kernels.

    Parameters
    ----------
    text : str
        Preprocessed CUDA source.

    Returns
    -------
    str, dict of str to KernelDeclaration
    """
    text, kernels = _rewrite_kernels(text)
    return _rewrite_shared(text), kernels


def kernel_table(entries, race):
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


def _end_of_group(text, start):
    """Index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in _OPENING:
            depth += 1
        elif text[i] in _CLOSING:
            depth -= 1
            if depth == 0:
                return i + 1
    raise ValueError("unbalanced brackets")


def _split_top_level(text):
    """`text` split at commas outside all brackets, template ones too."""
    parts, depth, angle, start = [], 0, 0, 0
    for i, char in enumerate(text):
        if char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif depth == 0 and char == "<":
            angle += 1
        elif depth == 0 and char == ">":
            angle -= 1
        elif depth == 0 and angle == 0 and char == ",":
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return parts


def _declared_name(declarator):
    """The name that ``const float* __restrict x`` or ``T a[4][N]`` declares."""
    without_attributes = re.sub(r"\b(__attribute__|alignas)\s*\(", "(", declarator)
    while "(" in without_attributes:
        start = without_attributes.index("(")
        end = _end_of_group(without_attributes, start)
        without_attributes = without_attributes[:start] + " " + without_attributes[end:]
    names = _IDENTIFIER.findall(without_attributes.split("[")[0].split("=")[0])
    return names[-1] if names else ""


def _statement_start(text, position):
    """Where the declaration that holds `position` begins: after ; { } or a line marker."""
    start = max(text.rfind(char, 0, position) for char in ";{}") + 1
    markers = list(re.finditer(r"^#.*\n", text[start:position], re.MULTILINE))
    return start + markers[-1].end() if markers else start


def _line_breaks(text):
    return "\n" * text.count("\n")


# ---- kernels ------------------------------------------------------------------------------------


def _rewrite_kernels(text):
    kernels, pieces, done = {}, [], 0
    extern_c_blocks = [
        (match.end() - 1, _end_of_group(text, match.end() - 1))
        for match in re.finditer(r'\bextern\s+"C"\s*\{', text)
    ]
    for match in re.finditer(r"\b__global__\b", text):
        if match.start() < done:
            continue
        before = text[_statement_start(text, match.start()) : match.start()]
        declarator = _read_declarator(text, match.end())
        if declarator is None:
            raise ValueError(f"cannot read the kernel declared by {text[match.start() :][:80]!r}")
        name, head, bounds, parameters, end = declarator
        prefix = before + text[match.end() : end]
        kernels[name] = KernelDeclaration(
            name=name,
            parameters=tuple(_declared_name(part) for part in _split_top_level(parameters))
            if parameters.strip() not in ("", "void")
            else (),
            is_template=re.search(r"\btemplate\b", before) is not None,
            is_extern_c=re.search(r'\bextern\s+"C"', prefix) is not None
            or any(start < match.start() < end for start, end in extern_c_blocks),
        )
        pieces += [text[done : match.start()], head]
        done = end
        body = re.compile(r"\s*\{").match(text, end)
        if body and bounds is not None:
            pieces.append(text[end : body.end()])
            pieces.append(f" cudasim::check_launch_bounds({' '.join(bounds.split())});")
            done = body.end()
    pieces.append(text[done:])
    return "".join(pieces), kernels


def _read_declarator(text, position):
    """After ``__global__``: (name, text to keep, launch bounds or None, parameters, end)."""
    kept, bounds, name = [], None, None
    token = re.compile(r'\s+|[A-Za-z_]\w*|"C"|\(|::|[<>,&*]|#.*')
    while True:
        match = token.match(text, position)
        if match is None:
            return None
        word = match.group()
        if word == "(":
            end = _end_of_group(text, position)
            kept.append(text[position:end])
            return name and (name, "".join(kept), bounds, text[position + 1 : end - 1], end)
        if word in ("__launch_bounds__", "__attribute__", "alignas"):
            start = text.index("(", match.end())
            position = _end_of_group(text, start)
            if word == "__launch_bounds__":
                bounds = text[start + 1 : position - 1]
                kept.append(_line_breaks(text[match.start() : position]))
            else:
                kept.append(text[match.start() : position])
            continue
        if _IDENTIFIER.fullmatch(word):
            name = word
        kept.append(word)
        position = match.end()


# ---- shared memory ------------------------------------------------------------------------------


def _rewrite_shared(text):
    pieces, done, count = [], 0, 0
    for match in re.finditer(r"\b__shared__\b", text):
        if match.start() < done:
            continue
        start = max(_statement_start(text, match.start()), done)
        end = start
        while text[end] != ";":
            end = _end_of_group(text, end) if text[end] in _OPENING else end + 1
        count += 1
        pieces += [
            text[done:start],
            _shared_declaration(text[start:end], f"cudasim_shared_{count}"),
        ]
        done = end + 1
    pieces.append(text[done:])
    return "".join(pieces)


def _shared_declaration(statement, struct):
    is_dynamic = re.search(r"\bextern\b", statement) is not None
    declaration = re.sub(r"\b(__shared__|extern|static)\b", "", statement)
    if is_dynamic:
        name = _declared_name(declaration)
        member = re.sub(r"\[\s*\]", "[1]", declaration, count=1)
        return (
            f"struct {struct} {{ {member}; }}; auto* const {name} = "
            f"cudasim::dynamic_shared_array<decltype({struct}::{name})>(alignof({struct}));"
        )
    # Inside a struct the declaration stays as it was written, whatever its type and attributes.
    result = f"struct {struct} {{ {declaration}; }};"
    for declarator in _split_top_level(declaration):
        name = _declared_name(declarator)
        member = f"{struct}::{name}"
        result += (
            f' static cudasim::SharedVariable {struct}_{name} = {{"{name}", sizeof({member}), '
            f"alignof({struct}), cudasim::element_size<decltype({member})>(), nullptr, 0}};"
            f" auto& {name} = cudasim::shared<decltype({member})>({struct}_{name});"
        )
    return result
