"""What is kept outside the package: where it lies, who may have written it, and that it can be removed."""

import json

import pytest

from lowlevel import cache_folder
from tools.cli import main


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(the user's cache folder, the one for temporary files), both empty."""
    own, temporary = tmp_path / "own", tmp_path / "temporary"
    own.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cupy"))
    monkeypatch.setattr(cache_folder.tempfile, "tempdir", str(temporary))
    return own, temporary


def test_the_users_own_folder_goes_first(folders):
    own, temporary = folders
    first = next(cache_folder.usable("kernels"))
    assert first == own / "kqcap" / "kernels" and first.is_dir()
    assert not list(temporary.iterdir())  # nothing is made that is not needed


def test_a_temporary_folder_must_be_ours(folders):
    own, temporary = folders
    (own / "kqcap").write_text("a file where the folder should be")
    (found,) = cache_folder.usable("kernels")
    assert found.is_relative_to(temporary) and found.parent.stat().st_mode & 0o022 == 0
    found.parent.chmod(0o777)
    assert not list(cache_folder.usable("kernels"))
    elsewhere = temporary / "of somebody"
    found.parent.rename(elsewhere)
    found.parent.symlink_to(elsewhere)
    assert not list(cache_folder.usable("kernels"))


def test_the_command_shows_and_clears(folders, capsys, tmp_path):
    assert main(["cache"]) == 0 and "nothing is kept" in capsys.readouterr().out
    own, _ = folders
    for file in (own / "kqcap" / "kernels" / "cpu" / "a.nbc", own / "kqcap" / "old.gguf"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(1000))
    cubins = tmp_path / "cupy"
    cubins.mkdir()
    for name in ("kqcap-1.cubin", "theirs.cubin"):
        (cubins / name).write_bytes(bytes(10))
    assert main(["cache", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert not document["cleared"] and {
        entry["path"]: (entry["files"], entry["bytes"]) for entry in document["entries"]
    } == {
        str(own / "kqcap" / "kernels"): (1, 1000),
        str(own / "kqcap" / "old.gguf"): (1, 1000),
        str(cubins / "kqcap-1.cubin"): (1, 10),
    }
    assert main(["cache", "--clear"]) == 0 and "removed" in capsys.readouterr().out
    assert not list((own / "kqcap").iterdir())
    assert [file.name for file in cubins.iterdir()] == ["theirs.cubin"]
