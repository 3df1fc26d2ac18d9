"""Public functions say their types: all but what Numba compiles, for each kind of arguments that it meets."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
OF_NUMBA = {"kernel", "task_kernel", "c_kernel", "intrinsic"}  # decorators


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


def _is_compiled(function):
    marks = (getattr(mark, "func", mark) for mark in function.decorator_list)
    return any(getattr(mark, "id", "") in OF_NUMBA for mark in marks)


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
            for what, node, is_method in _public_functions(ast.parse(path.read_text("utf-8"))):
                if not _is_compiled(node) and not _is_typed(node, is_method):
                    bare.append(f"{name}: {what}")
    assert bare == []
