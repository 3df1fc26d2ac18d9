"""That the command notices packages of others under our names, on a made-up site-packages folder."""

import base64
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import lowlevel
import quant
from lowlevel.version import __version__
from tools import installation

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHECK = """
from kqcap_tools import installation
try:
    installation.check(warn=print)
except installation.InstallationError as error:
    print("ERROR", error)
"""


class Site:
    """A folder with distributions as pip writes them."""

    def __init__(self, folder):
        self.folder = folder

    def install(self, name, files):
        records = []
        for path, text in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            records.append(f"{path},sha256={digest.rstrip(b'=').decode()},{len(text)}")
        info = self.folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("\n".join([*records, f"{info.name}/RECORD,,"]))

    def check(self, *before):
        """What `installation.check` says in a fresh process."""
        paths = os.pathsep.join(map(str, (*before, self.folder)))
        done = subprocess.run(
            [sys.executable, "-c", CHECK],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path / "site")
    own = {f"{package}/__init__.py": f"# {package}\n" for package in installation.PACKAGES}
    own["quant/formats.py"] = "# formats\n"
    site.install("kqcap", {**own, "kqcap_tools/__init__.py": ""})
    shutil.copy(ROOT / "tools" / "installation.py", site.folder / "kqcap_tools")
    return site


def test_a_whole_installation_is_silent(site):
    (site.folder / "quant" / "__pycache__").mkdir()
    (site.folder / "quant" / "__pycache__" / "old.nbc").write_text("an older version's")
    assert site.check() == ""


def test_another_distribution_that_replaced_ours(site):
    site.install("quant", {"quant/__init__.py": "# theirs\n"})
    said = site.check()
    assert said.startswith("ERROR ") and "another package's __init__.py (of quant 1.0)" in said


def test_files_of_others_beside_ours(site):
    site.install("lowlevel", {"lowlevel/bits.py": "# theirs\n"})
    said = site.check()
    assert "1 file(s)" in said and "lowlevel/bits.py" in said and "(of lowlevel 1.0)" in said
    (site.folder / "quant" / "stray.py").write_text("nobody's")
    assert "2 file(s)" in site.check()


@pytest.mark.parametrize("name", ["quant.py", "lowlevel/__init__.py"])
def test_something_that_goes_first_on_the_path(site, tmp_path, name):
    first = tmp_path / "first" / name
    first.parent.mkdir(parents=True)
    first.write_text("raise SystemExit('must not be run')")
    said = site.check(tmp_path / "first")
    assert said.startswith("ERROR ") and f"imported from {first}, not from" in said


def test_versions():
    assert lowlevel.__version__ == quant.__version__ == __version__
    assert "version = attr: lowlevel.version.__version__" in (ROOT / "setup.cfg").read_text()
