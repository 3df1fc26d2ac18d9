"""Imports point down, and no files stand in a circle, those that only name types included."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
FLOORS = ("tools", "quant", "lowlevel")  # from the top


def _modules():
    """{dotted name: file} of all floors."""
    found = {}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def _imported(name, path):
    """Dotted names that a file imports, at its top, in functions and for types."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _graph():
    """{module: modules of the floors that it imports}; a package stands for no file beneath it."""
    modules = _modules()
    graph = {}
    for name, path in modules.items():
        targets = set()
        for target in _imported(name, path):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and modules[target].name != "__init__.py":
                targets.add(target)
        graph[name] = targets - {name}
    return graph


def _reached(graph, start):
    seen, new = set(), [start]
    while new:
        for target in graph[new.pop()] - seen:
            seen.add(target)
            new.append(target)
    return seen


def test_no_circles():
    graph = _graph()
    reached = {name: _reached(graph, name) for name in graph}
    circles = []
    for name in sorted(graph):
        if name in reached[name] and not any(name in circle for circle in circles):
            circles.append({other for other in reached[name] if name in reached[other]})
    assert circles == []


def test_imports_point_down():
    for name, targets in _graph().items():
        above = FLOORS[: FLOORS.index(name.split(".")[0])]
        assert not [t for t in targets if t.split(".")[0] in above], name


def test_the_ground_names_no_floor_above_by_a_string():
    """Modules that are found by name (`devices.kernels`) are those of the floor that asks."""
    for path in (ROOT / "lowlevel").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "kernels":
                assert node.args[0].value == "lowlevel", path
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                named = [a.value for a in node.args if isinstance(a, ast.Constant)]
                assert not [text for text in named if text.split(".")[0] in FLOORS[:2]], path
