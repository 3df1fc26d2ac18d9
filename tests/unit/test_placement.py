"""Where layers, output and experts lie, by arguments as llama.cpp has them; refusals name what does not fit."""

import pytest
from small_models import small

from lowlevel import BudgetError
from quant.models.config import ModelConfig
from quant.models.model import plan_model
from quant.models.model_plan import plan_parts
from quant.models.named_geometries import named_geometry
from quant.models.placement import Part, device_names, placement_of
from quant.models.plan import Room
from quant.models.planned_file import PlannedFile
from quant.models.planning import prepare

GPUS = ["cudasim", "cudasim:1"]


@pytest.fixture(scope="module")
def config():
    """Three layers, the last of which has experts."""
    return ModelConfig.from_file(PlannedFile(small("deepseek-r1"), "Q8_0"))


def placed(config, names, **options):
    return [part[:5] for part in placement_of(config, names, **options)]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (None, [("cudasim", 0, 3, True, True)]),
        (99, [("cudasim", 0, 3, True, True)]),
        (4, [("cudasim", 0, 3, True, True)]),
        (3, [("cudasim", 0, 3, True, False), ("cpu", 3, 3, False, True)]),
        (1, [("cpu", 0, 2, True, False), ("cudasim", 2, 3, False, False), ("cpu", 3, 3, False, True)]),
        (0, [("cpu", 0, 3, True, True)]),
    ],
)  # fmt: skip
def test_the_last_layers_are_on_the_device(config, n, expected):
    assert placed(config, ["cudasim"], n_gpu_layers=n) == expected


def test_layers_are_split_in_proportion(config):
    two = [("cudasim", 0, 2, True, False), ("cudasim:1", 2, 3, False, True)]
    assert placed(config, GPUS) == placed(config, GPUS, tensor_split=[1, 1]) == two
    assert placed(config, GPUS, tensor_split=[3, 1])[0] == ("cudasim", 0, 3, True, False)
    assert placed(config, GPUS, tensor_split=[0, 1]) == [("cudasim:1", 0, 3, True, True)]
    assert placed(config, GPUS, rooms=[1, 3])[0] == ("cudasim", 0, 1, True, False)
    three = placed(config, GPUS, n_gpu_layers=2, tensor_split=[1, 1])
    assert [part[0] for part in three] == ["cpu", *GPUS, "cpu"]


def test_the_sources_machine():
    """15 devices, by its own --tensor-split: 62 units, none left out, in order."""
    config = ModelConfig.from_file(PlannedFile(named_geometry("deepseek-r1"), "Q2_K"))
    split = [37, 25, 25, 25, 24.5, 24, 24, 24, 24, 25, 24, 25, 24, 24.5, 31]
    parts = placement_of(config, [f"cudasim:{i}" for i in range(15)], tensor_split=split)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop, parts[-1].has_output) == (0, 61, True)
    assert len(parts) == 15 and parts[0].stop == 6


def test_experts_on_the_cpu(config):
    def hosts(**options):
        return [(part.device, part.host_experts) for part in placement_of(config, GPUS, **options)]

    assert hosts(cpu_moe=True) == [("cudasim", ()), ("cudasim:1", (2,))]
    assert hosts(cpu_moe=2) == hosts() == [("cudasim", ()), ("cudasim:1", ())]
    assert hosts(cpu_moe=3) == hosts(cpu_moe=True)
    for place in ([(r"ffn_.*_exps", "cpu")], [(r"blk\.2\.ffn_.*_exps\.weight", "CPU")]):
        assert hosts(place=place) == hosts(cpu_moe=True)
    # The first rule that matches counts.
    assert hosts(place=[("exps", "cudasim:1"), ("exps", "cpu")], cpu_moe=True) == hosts()


def test_layers_and_the_output_by_name(config):
    parts = placed(config, ["cudasim"], place=[(r"^output\.", "cpu"), (r"blk\.1\.", "cpu")])
    assert [part[:3] for part in parts] == [
        ("cudasim", 0, 1), ("cpu", 1, 2), ("cudasim", 2, 3), ("cpu", 3, 3)
    ]  # fmt: skip
    assert placed(config, ["cudasim"], place=[("token_embd", "cpu")])[0][0] == "cudasim"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (dict(n_gpu_layers=-1), ValueError, "n_gpu_layers: expected 0 or more"),
        (dict(n_gpu_layers=1.5), TypeError, "n_gpu_layers"),
        (dict(n_gpu_layers=True), TypeError, "n_gpu_layers"),
        (dict(tensor_split=[1]), ValueError, "tensor_split: 1 numbers for 2 devices"),
        (dict(tensor_split=[0, 0]), ValueError, "tensor_split"),
        (dict(tensor_split=[1, -1]), ValueError, "tensor_split"),
        (dict(cpu_moe=-1), ValueError, "cpu_moe"),
        (dict(cpu_moe="all"), TypeError, "cpu_moe"),
        (dict(place=["exps"]), TypeError, "place: expected pairs"),
        (dict(place=[("(", "cpu")]), ValueError, "no regular expression"),
        (dict(place=[("exps", "cudasim:2")]), ValueError, r"none of the model's devices"),
        (dict(place=[("exps", "gpu")]), ValueError, "known are"),
        (dict(place=[("mamba", "cpu")]), ValueError, "'mamba' matches no tensor"),
        (dict(place=[("token_embd", "cudasim")]), ValueError, "'token_embd.weight' stays"),
        (dict(place=[(r"blk\.2\.ffn_up_exps", "cpu")]), ValueError, "blk.2.ffn_up_exps.weight.*experts of layer 2"),
        (dict(place=[(r"blk\.0\.attn", "cpu")]), ValueError, r"blk\.0\.attn.*blk\.0\..*layer 0 other than"),
        (dict(place=[("exps", "cudasim")]), ValueError, "exps.*on cudasim, while.*cudasim:1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(config, options, kind, words):
    with pytest.raises(kind, match=words):
        placement_of(config, GPUS, **options)


def test_the_cpu_alone_has_nothing_to_place(config):
    for options in (dict(n_gpu_layers=3), dict(cpu_moe=True)):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*device="):
            placement_of(config, ["cpu"], **options)
    dense = ModelConfig.from_file(PlannedFile(small("llama-8b"), "Q8_0"))
    with pytest.raises(ValueError, match="no experts"):
        placement_of(dense, ["cudasim"], cpu_moe=True)


def test_devices_are_named_once():
    assert device_names("cuda") == ["cuda:0"] and device_names(["cudasim:0"]) == ["cudasim"]
    for bad, kind in ((["cudasim", "cudasim:0"], ValueError), ([], TypeError), (3, TypeError)):
        with pytest.raises(kind, match="device"):
            device_names(bad)


def test_plans_of_parts_are_those_of_the_whole():
    """Weights and cache are shared out; each device is refused by its name."""
    file = PlannedFile(small("deepseek-r1", n_rot=64, d_k=128, kv_lora_rank=512), "Q8_0")
    options = dict(n_ctx=128, n_ubatch=16)
    _, whole = plan_model(file, "cudasim", **options)
    for more in (dict(), dict(tensor_split=[3, 1]), dict(n_gpu_layers=2), dict(cpu_moe=True)):
        plans, memory = plan_model(file, GPUS, **options, **more)
        assert memory.kv_cache == whole.kv_cache
        on_devices = [plans.by_device[name] for name in GPUS]
        copied = sum(each.weights_copied for each in on_devices)
        assert copied <= whole.weights_copied
        assert (copied == whole.weights_copied) == (not more or "tensor_split" in more)


def test_a_device_that_is_too_small_is_named():
    file = PlannedFile(small("deepseek-r1", n_rot=64, d_k=128, kv_lora_rank=512), "Q8_0")
    run = dict(n_ctx=128, n_ubatch=16, amb=2**20, kv_type="f16", mla="auto", exact=False)
    rest = dict(method="auto", n_threads=None, comm=None, split=None)
    places = dict(n_gpu_layers=None, tensor_split=None, cpu_moe=False, place=())
    prepared = prepare(file, GPUS, {}, {**run, **rest, **places})
    needed = plan_parts(*prepared, n_bytes=file.n_bytes, rooms={}).by_device["cudasim:1"]
    rooms = {"cudasim:1": Room(needed.weights_copied, "cudasim:1")}
    with pytest.raises(BudgetError, match=r"cudasim:1: .*n_gpu_layers, tensor_split") as refused:
        plan_parts(*prepared, n_bytes=file.n_bytes, rooms=rooms)
    assert refused.value.smallest_budget > needed.weights_copied


def test_a_part_says_what_it_is():
    part = Part("cuda:0", 3, 7, False, True, (5,))
    assert str(part) == "cuda:0: layers 3 to 6 and output (experts of 1 layer on the CPU)"
    assert part.to_dict()["host_experts"] == [5]
