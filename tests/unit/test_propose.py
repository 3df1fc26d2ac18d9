"""A placement is proposed that `quant.load` would take, and says so as a command line that means the same."""

import argparse

import pytest
from small_models import small

from quant.models.model import plan_model
from quant.models.planned_file import PlannedFile
from quant.models.propose import propose
from tools.placing import Placing, add_options

SIZES = dict(n_layer=5, n_layer_dense=1, n_rot=64, d_k=128, kv_lora_rank=512, n_ff_expert=256)
RUN = dict(
    n_ctx=128, n_ubatch=16, amb=2**20, kv_type="f16", mla="auto", exact=False, method="auto",
    n_threads=None, comm=None, split=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def file():
    return PlannedFile(small("deepseek-r1", **SIZES), "Q8_0")


def parsed(text):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return Placing.of(parser.parse_args(text.split()))


def pool(file, **options):
    """Bytes on one device."""
    plans, _ = plan_model(file, "cudasim", **RUN, **options)
    return plans.by_device["cudasim"].pool


def test_one_device(file):
    """All of it; else as few experts on the CPU as will do; else fewer layers as well."""
    whole, most, least = pool(file), pool(file, cpu_moe=3), pool(file, cpu_moe=True)
    assert whole > most > least
    for room, arguments in (
        (whole, "--device cuda:0"),
        (most, "--device cuda:0 --cpu-moe 3"),
        (least, "--device cuda:0 --cpu-moe 5"),
    ):
        found = propose(file, [room], RUN)
        assert found.arguments == arguments
        assert found.plans.by_device["cudasim"].pool <= room
        assert found.to_dict()["memory_of"].keys() <= {"cuda:0", "cpu"}
    found = propose(file, [least * 3 // 4], RUN)
    assert 0 < found.n_gpu_layers < 6
    assert found.arguments == f"--device cuda:0 -ngl {found.n_gpu_layers} --cpu-moe"
    assert propose(file, [1000], RUN) is None


def test_several_devices_are_filled_alike(file):
    whole = pool(file)
    found = propose(file, [whole, whole // 2], RUN)
    assert sum(found.tensor_split) == 6 and found.tensor_split[0] > found.tensor_split[1] > 0
    options = parsed(found.arguments).options()
    assert options.pop("device") == ["cuda:0", "cuda:1"]
    plans, _ = plan_model(file, ["cudasim", "cudasim:1"], **RUN, **options)
    assert plans.by_device == found.plans.by_device


def test_options_are_arguments_of_load():
    assert parsed("").options() == dict(
        device="cpu", n_gpu_layers=None, tensor_split=None, cpu_moe=False, place=()
    )
    text = r"--device cuda:0,cuda:1 -ngl 9 -ts 3,1 -cmoe 4 -ot blk\.{1,2}\.exps=CPU,output=cpu -ot x=cuda:1"
    assert parsed(text) == Placing(
        ("cuda:0", "cuda:1"), 9, (3, 1), 4, ((r"blk\.{1,2}\.exps", "CPU"), ("output", "cpu"), ("x", "cuda:1"))
    )  # fmt: skip
    assert parsed("--cpu-moe").cpu_moe is True and parsed("--n-cpu-moe 2").cpu_moe == 2
    assert str(parsed("--device cuda:0 --cpu-moe 4")) == "cuda:0 --cpu-moe 4"
    for bad in ("-ngl -1", "-ts 0,0", "-ot exps", "--cpu-moe x"):
        with pytest.raises(SystemExit):
            parsed(bad)
