"""Public functions say their types: all but kernels, which Numba types, and rooms that are listed here as not done."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Kernels and what they are built of: Numba types their arguments when they are compiled.
OF_NUMBA = ("lowlevel/cpu/simd/", "quant/cpu/")
NOT_YET = (
    "lowlevel/cpu/", "lowlevel/cudasim/", "quant/gpu/matmul/",
)  # fmt: skip


def _public_functions(tree):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                    not method.name.startswith("_") or method.name == "__init__"
                ):
                    static = any(
                        getattr(mark, "id", "") == "staticmethod" for mark in method.decorator_list
                    )
                    yield f"{node.name}.{method.name}", method, not static


def _is_typed(function, is_method):
    given = function.args
    arguments = [*given.posonlyargs, *given.args][is_method:] + given.kwonlyargs
    arguments += [argument for argument in (given.vararg, given.kwarg) if argument]
    return function.returns is not None and all(argument.annotation for argument in arguments)


def test_public_functions_are_typed():
    bare = []
    for floor in ("lowlevel", "quant", "tools"):
        for path in sorted((ROOT / floor).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith((*OF_NUMBA, *NOT_YET)):
                functions = _public_functions(ast.parse(path.read_text(encoding="utf-8")))
                bare += [f"{name}: {what}" for what, node, m in functions if not _is_typed(node, m)]
    assert bare == []
