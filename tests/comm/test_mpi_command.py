"""kqcap run and bench under mpiexec: one rank speaks, all end together."""

import json
import sys

import numpy as np
import pytest
from small_models import small
from test_mpi import SOON, mpiexec

import quant
from quant.models.synthetic.make_gguf import make_gguf
from tools.cli import main

# U-batches that decompress latents, on one device and on ranks with half of its heads alike.
RUN = ("-c", "64", "-ub", "32", "-t", "1")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    make_gguf(path, small("deepseek-r1"), "Q8_0")
    return str(path)


def kqcap(n, *arguments):
    return mpiexec(n, "-m", "tools", *arguments)


def test_one_rank_prints_what_one_device_says(path, tmp_path):
    logits, ids = tmp_path / "logits.npy", tmp_path / "ids.txt"
    tokens = np.random.default_rng(3).integers(0, 300, 40)
    ids.write_text(" ".join(map(str, tokens)))
    options = ("--tokens", str(ids), "-n", "3", "--exact", "--ignore-eos", "--logits", str(logits))
    with quant.load(path, n_ctx=64, n_ubatch=32, n_threads=1, exact=True) as net:
        # First here, which keeps the kernels: ranks that find none compile side by side, each of them all, or spin.
        expected = net.prefill(tokens, all_logits=True)
        code, out, error, _ = kqcap(2, "run", path, *options, *RUN, "--split", "tensor", "--json")
        assert code == 0, error
        document = json.loads(out)
        assert net.memory.scratch <= document["memory"]["scratch"]
    found = np.load(logits)
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 1e-4
    assert document["tokens"][0] == found[-1].argmax() and len(document["tokens"]) == 3
    assert document["n_ranks"] == 2 and document["split"] == "tensor" and not document["broken"]
    assert document["pool_peak"] == document["memory"]["pool"]


def test_bench(path, capsys):
    options = (path, "-p", "32", "-n", "2", "-r", "1", "-ub", "16", "-t", "1", "--json")
    assert main(["bench", *options]) == 0  # keeps the kernels, as above
    capsys.readouterr()
    for split in ("context", "layer"):
        code, out, error, _ = kqcap(2, "bench", *options, "--split", split)
        assert code == 0, error
        rows = json.loads(out)["rows"]
        assert [row["test"] for row in rows] == ["pp32", "tg2"]
        assert all(row["n_ranks"] == 2 and row["tokens_per_second"] > 0 for row in rows)
        assert not any(row["broken"] for row in rows)


def test_each_rank_has_its_own_device(path):
    options = ("--random", "9", "-n", "2", "-c", "16", "-ub", "8", "--ignore-eos", "--json")
    devices = ("--device", "cudasim,cudasim:1", "--split", "layer")
    with quant.load(path, "cudasim", n_ctx=16, n_ubatch=8) as net:
        # First here, as above.
        list(net.generate([1] * 9, 2, stop=()))
        code, out, error, _ = kqcap(2, "run", path, *options, *devices)
        assert code == 0, error
        document = json.loads(out)
        net.truncate(0)
        expected = list(net.generate(document["prompt_tokens"], 2, stop=()))
    assert document["tokens"] == expected and not document["broken"]


REFUSED = {
    "split: 3 ranks do not divide the 4 heads": (3, ["--split", "tensor"]),
    "--split: mpirun started 2 ranks": (2, []),
    "pool: 65536 bytes": (2, ["--split", "tensor", "--budget", "64KiB"]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_use_is_said_once(path, message):
    n, options = REFUSED[message]
    code, out, error, seconds = kqcap(n, "run", path, "--random", "4", "-n", "1", *RUN, *options)
    assert code == 2 and out == "" and seconds < SOON
    assert error.count("kqcap run: error: ") == 1 and message in error


def test_ranks_run_alike(path, tmp_path):
    """Of another file, or with other options, one would wait for what the other does not do."""
    other = tmp_path / "other.gguf"
    make_gguf(other, small("deepseek-r1", n_ff=320), "Q8_0")
    python = [sys.executable, "-m", "tools", "run"]
    options = ["--random", "4", *RUN, "--split", "tensor"]
    for message, second in {
        "model: ": [str(other), *options],
        "n_predict: None on rank 0, 1 on rank 1": [path, *options, "-n", "1"],
    }.items():
        code, out, error, seconds = mpiexec(
            1, *python[1:], path, *options, ":", "-n", "1", *python, *second
        )
        assert code == 2 and out == "" and seconds < SOON
        assert message in error and error.count("all ranks run alike") == 1


def test_an_interrupt_of_one_rank_ends_all(path):
    """Whatever that rank has still to say: the others wait for it."""
    child = (
        "import os, signal, sys, threading\n"
        "from tools import cli\n"
        "rank = int(os.environ['PMI_RANK'])\n"
        "if rank == 0: threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    options = (
        "--random",
        "60000",
        "-n",
        "1",
        "-c",
        "60001",
        "-ub",
        "8",
        "-t",
        "1",
        "--split",
        "tensor",
    )
    code, _, error, seconds = mpiexec(2, "-c", child, "run", path, *options)
    assert code != 0 and seconds < SOON
    assert "kqcap run: interrupted" in error and "rank 0: KeyboardInterrupt" in error


def test_a_split_needs_ranks(capsys, path):
    assert main(["run", path, "--random", "4", "--split", "tensor"]) == 2
    assert (
        "--split tensor: it divides a model among ranks; start them by mpirun"
        in capsys.readouterr().err
    )
