"""What setup.cfg cannot say: the long description, which is read where README.md's own files are not beside it.

The project has no public address that links could be made to lead to, so that on a package index the text
stands for itself: names of files instead of links to them, and no picture.
"""

import pathlib
import re

_HERE = pathlib.Path(__file__).resolve().parent
_PICTURE = re.compile(r"^!\[[^\]]*\]\((?![a-z]+://)[^)]+\)\n+", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+://)([^)]+)\)")
_NOTE = "\n(The files that are named here are those of the source repository.)\n"


def long_description():
    """README.md without pictures and links to files of the repository: a link becomes "text (path)"."""
    text = (_HERE / "README.md").read_text(encoding="utf-8")
    return _LINK.sub(r"\1 (`\2`)", _PICTURE.sub("", text)) + _NOTE


if __name__ == "__main__":
    from setuptools import setup

    setup(long_description=long_description())
