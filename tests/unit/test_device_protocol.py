"""Every device has all that `lowlevel.devices.Device` lists, with the arguments it names."""

import ast
import inspect
import pathlib

import pytest

from lowlevel import devices
from lowlevel.devices import Device, StreamDevice

ROOT = pathlib.Path(__file__).resolve().parents[2]


def members(protocol):
    """{name: its function, or None for a plain attribute} of a protocol."""
    names = set(protocol.__annotations__) | {n for n in vars(protocol) if not n.startswith("_")}
    return {name: vars(protocol).get(name) for name in names}


@pytest.mark.parametrize("name", ["cpu", "cudasim"])
def test_a_device_has_what_the_protocol_lists(name):
    device = devices.get(name)
    wanted = members(Device)
    if device.has_streams:
        wanted |= members(StreamDevice)
    for member, function in wanted.items():
        assert hasattr(type(device), member) or hasattr(device, member), member
        if inspect.isfunction(function):
            asked = inspect.signature(function).parameters
            given = inspect.signature(getattr(type(device), member)).parameters
            assert len(given) in (len(asked), len(asked) - 1), member  # a static method has no self


def test_the_gpu_device_has_them_too():
    """By its class alone, which imports no CuPy."""
    from lowlevel.cuda.device import CudaDevice

    own = {"name", "has_streams"} | set(vars(CudaDevice)) | set(dir(CudaDevice))
    missing = (set(members(Device)) | set(members(StreamDevice))) - own
    assert not missing - set(CudaDevice.__init__.__code__.co_names)


def test_no_caller_asks_which_device_it_is_on():
    """What differs is a fact or a method of the device; its `room` finds kernels by name, no more."""
    for floor in ("lowlevel", "quant", "tools"):
        for path in (ROOT / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    assert ".room" not in ast.unparse(node), path
