"""How to get what kqcap can use but does not need: the extras of setup.cfg, as pip is told of them."""

import importlib.metadata

__all__ = ["pip_install"]


def pip_install(extra: str) -> str:
    """The command that installs what an extra stands for: "pip install 'matplotlib>=3.8'".

    Its packages by name, since no package index has kqcap itself; of a checkout, where nothing says what the
    extra stands for, ``pip install '.[plot]'``.
    """
    try:
        required = importlib.metadata.requires("kqcap") or ()
    except importlib.metadata.PackageNotFoundError:
        required = ()
    lines = (line.partition(";") for line in required)
    packages = [package.strip() for package, _, marker in lines if f'"{extra}"' in marker]
    return "pip install " + " ".join(f"'{package}'" for package in packages or [f".[{extra}]"])
