"""The device seam: pools, moving arrays, checked launches; what must not be imported or fall back."""

import re
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from quant_cases import random_tensor

import lowlevel
import quant
from lowlevel import Pool, asarray, asnumpy, cudasim, devices
from lowlevel.gpu import instances, loader
from lowlevel.gpu.kernel_device import KernelDevice
from lowlevel.pool import MemoryCorruptionError

FLAT = instances.COPY[4]
DTYPES = ["bool", "uint8", "float16", ml_dtypes.bfloat16, "float32", "int64", "complex64"]


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_there_and_back(dtype, device, rng):
    for shape in ((), (0, 3), (1,), (5, 7, 3)):
        x = np.asarray(rng.integers(0, 2, shape), dtype)
        on = asarray(x, device)
        assert devices.of_array(on, "on").name == device and asarray(on, device) is on
        assert (on.shape, on.dtype) == (x.shape, x.dtype) and on.flags.c_contiguous
        back = asnumpy(on)
        assert type(back) is np.ndarray and back.tobytes() == x.tobytes()
        assert type(asarray(on, "cpu")) is np.ndarray


def test_strided_arrays_move_too(device, rng):
    x = rng.standard_normal((6, 8, 4)).astype(np.float32)
    for view in (x[::-1, ::2], x.T, np.broadcast_to(x[:1], x.shape)):
        assert np.array_equal(asnumpy(asarray(view, device)), view)
    on = asarray(x, device)
    assert np.array_equal(asnumpy(on[::-1, ::2].T), x[::-1, ::2].T)
    mapped = x.copy()
    mapped.flags.writeable = False
    assert np.array_equal(asnumpy(asarray(mapped, device)), x)


def test_a_copy_is_a_copy(device):
    x = np.zeros(4, np.float32)
    on = asarray(x, device)
    x[:] = 1
    back = asnumpy(on)
    back[:] = 2
    assert not asnumpy(on).any()


def test_what_is_no_array(device):
    assert asnumpy(asarray([1, 2], device)).tolist() == [1, 2]
    with pytest.raises(TypeError, match=r"masked|NumPy array"):
        asarray(np.ma.array([1, 2], mask=[0, 1]), device)
    with pytest.raises((TypeError, ValueError)):
        asarray(np.array([object()]), device)
    with pytest.raises(ValueError, match=r'device: known are "cpu", "cuda:N" and "cudasim:N"'):
        asarray([1], "gpu")


def test_simulated_devices_are_apart(rng):
    """Memory of one is none of another, although all lies on the host; "cudasim" is the first."""
    assert devices.get("cudasim:0") is devices.get("cudasim")
    assert devices.canonical_name("cudasim:0") == "cudasim"
    x = rng.standard_normal((3, 40)).astype(np.float32)
    on = {name: asarray(x, name) for name in ("cudasim", "cudasim:1", "cudasim:2")}
    for name, array in on.items():
        for view in (array, array[1:], array.T, array.view("u4"), array.reshape(-1)[::2]):
            assert devices.of_array(view, "x").name == view.device == name
        assert devices.get("cudasim:1").address(array) == (
            array.ctypes.data if name == "cudasim:1" else None
        )
    moved = asarray(on["cudasim:1"], "cudasim:2")
    assert moved.device == "cudasim:2" and np.array_equal(asnumpy(moved), x)
    with Pool("1KiB", device="cudasim:1") as pool:
        block = pool.empty((3, 40))
        lowlevel.ops.cast(on["cudasim:1"], block)
        assert block.device == pool.device == "cudasim:1" and np.array_equal(asnumpy(block), x)
        with pytest.raises(TypeError, match=r"cudasim:1.*cudasim:2|cudasim:2.*cudasim:1"):
            lowlevel.ops.cast(on["cudasim:2"], block)
        pool.free(block)


# ---------------------------------------------------------------- pools


def test_pool(device):
    with Pool("1MiB", device=device) as pool:
        assert pool.device == device
        a, b = pool.empty((3, 5), "bfloat16"), pool.empty(7)
        target = devices.get(device)
        assert target.address(a) % 256 == 0 and target.address(b) - target.address(a) == 256
        a[...], b[...] = 1, 2
        assert asnumpy(a).astype("f4").sum() == 15 and asnumpy(b).sum() == 14
        empty = pool.empty((0, 3))
        with pytest.raises(ValueError, match="view"):
            pool.free(a[1:])
        with pytest.raises(lowlevel.BudgetError, match="1"):
            pool.empty(2**19)
        for array in (a, b, empty):
            pool.free(array)
    assert pool.used == 0


def test_debug_pool_finds_what_is_written_beside(device):
    pool = Pool("1MiB", device=device, debug=True)
    a = pool.empty(10, "float32", tag="scores")
    assert np.isnan(asnumpy(a)).all()
    target = devices.get(device)
    memory = pool._memory._cells[target.address(a)][2]
    beside = target.view(memory, 256 + 256, (1,), np.dtype("float32"))
    beside[...] = 1
    with pytest.raises(MemoryCorruptionError, match=r"past the end of block .*scores"):
        pool.free(a)
    pool.close()


def test_arena_outlives_the_pool(device):
    pool = Pool("4KiB", device=device)
    a = pool.empty(8)
    a[...] = 3
    pool.free(a)
    pool.close()
    assert asnumpy(a).sum() == 24


def test_more_memory_than_there_is(device):
    with pytest.raises(MemoryError, match=r"does not give .* of memory"):
        Pool(2**62, device=device)


# ---------------------------------------------------------------- launches


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda a: a[:3], TypeError, "3 arguments for 4 parameters"),
        (
            lambda a: [a[0], np.zeros(4, np.float32), *a[2:]],
            TypeError,
            "argument 1: expected an array",
        ),
        (lambda a: [*a[:3], 2**32], OverflowError, "argument 3: 4294967296 does not fit uint32"),
        (lambda a: [*a[:3], -1], OverflowError, "argument 3: -1 does not fit uint32"),
        (lambda a: [*a[:3], 1.5], TypeError, "argument 3: expected a number for uint32"),
        (lambda a: [*a[:3], True], TypeError, "argument 3: expected a number for uint32"),
        (lambda a: [*a[:2], np.zeros((), "V16"), a[3]], TypeError, "structure of 208 bytes"),
    ],
)
def test_refused_arguments(change, error, message, device):
    x = asarray(np.zeros(4, np.float32), device)
    good = [x, x, np.zeros((), "V208"), 0]
    with pytest.raises(error, match=message):
        devices.get(device).launch(FLAT, 1, change(good))
    assert not asnumpy(x).any()


@pytest.mark.parametrize("n_blocks", [0, -1, 2**31])
def test_refused_grids(n_blocks, device):
    x = asarray(np.zeros(4, np.float32), device)
    with pytest.raises(ValueError, match="a grid of"):
        devices.get(device).launch(FLAT, n_blocks, [x, x, np.zeros((), "V208"), 0])


def test_dtypes_of_pointers_are_checked(device):
    from quant.gpu.instances import DEQUANTIZE

    kernel = DEQUANTIZE["Q8_0", "float16", True]
    data, out = asarray(np.zeros(34, np.uint8), device), asarray(np.zeros(32, np.float32), device)
    with pytest.raises(TypeError, match="argument 2: expected uint16, got float32"):
        devices.get(device).launch(kernel, 1, (data, 0, out, 0, 1, 1, 1, 1, 1))


def test_the_tables_parameters_are_the_kernels():
    """On the simulator, which knows the compiled signatures; codes as in `Kernel`."""
    library = devices.get("cudasim")._library
    for kernel in instances.all_kernels():
        found = []
        for parameter in library.function(kernel).parameters:
            code = {"bf2": "u2", "f2": "u2"}.get(parameter.code, parameter.code)
            if parameter.pointee:
                const = "const " if parameter.is_const else ""
                found.append(f"{const}{code}*")
            else:
                found.append(f"V{parameter.bytes}" if code == "V" else code)
        listed = ["V128" if code == "map" else code for code in kernel.parameters]  # a CUtensorMap
        assert found == listed, kernel.name


def test_a_file_is_compiled_once(monkeypatch):
    """Whatever the number of threads that ask, and of its kernels."""
    compiled = []

    class Module:
        def __init__(self, text, name, options, expressions, architecture):
            compiled.append((name, options, expressions, architecture))

        def get_function(self, name):
            return name

    library = loader.Library(Module)
    kernels = [k for k in instances.all_kernels() if k.file in ("q2_k.cu", "concat.cu")]
    threads = [
        threading.Thread(target=lambda: [library.function(kernel) for kernel in kernels])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, *_ in compiled) == [
        "lowlevel/gpu/concat.cu",
        "quant/gpu/q2_k.cu",
    ]
    assert all(library.function(kernel) == kernel.name for kernel in kernels)


# ---------------------------------------------------------------- no surprises


def run_python(code):
    root = cudasim.__file__.rsplit("/lowlevel/", 1)[0]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == 0, result.stdout.decode()


def test_imports_no_more_than_it_needs():
    """Neither scipy nor Numba, and CuPy only when a GPU is asked for."""
    run_python(
        "import sys, numpy as np, lowlevel, quant, quant.gpu.dequantize.run, lowlevel.cuda.device\n"
        "t = quant.QuantTensor(np.zeros((2, 84), np.uint8), 'Q2_K', (2, 256)).to('cudasim')\n"
        "lowlevel.concat([quant.dequantize(t)] * 2)\n"
        "lowlevel.Pool('1MiB', 'cudasim').close()\n"
        "found = {'scipy', 'numba', 'llvmlite', 'cupy'} & set(sys.modules)\n"
        "assert not found, found\n"
    )


def test_without_cupy_the_extra_is_named():
    run_python(
        "import sys\n"
        "sys.modules['cupy'] = None\n"  # an import of it fails
        "import lowlevel\n"
        "try:\n"
        "    lowlevel.Pool('1MiB', 'cuda:0')\n"
        "except ImportError as error:\n"
        "    assert 'pip install ' in str(error) and 'cuda1' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
    )


def test_without_ml_dtypes_bfloat16_says_what_to_install():
    run_python(
        "import sys\n"
        "sys.modules['ml_dtypes'] = None\n"
        "import numpy as np, lowlevel, quant\n"
        "t = quant.QuantTensor(np.zeros((2, 34), np.uint8), 'Q8_0', (2, 32)).to('cudasim')\n"
        "assert quant.dequantize(t, 'float16').shape == (2, 32)\n"
        "pool = lowlevel.Pool('1MiB', 'cudasim')\n"
        "for call in (lambda: quant.dequantize(t, 'bfloat16'), lambda: pool.empty(3, 'bfloat16')):\n"
        "    try:\n"
        "        call()\n"
        "    except ImportError as error:\n"
        "        assert 'pip install ml_dtypes' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit('no error')\n"
    )


@pytest.mark.gpu
def test_a_gpu_that_is_not_there():
    pytest.importorskip("cupy")
    with pytest.raises(ValueError, match='device: no "cuda:99"'):
        Pool("1MiB", device="cuda:99")


def test_nothing_falls_back_to_the_cpu(device, rng):
    t = random_tensor(rng, "Q8_0", (3, 64))
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(TypeError, match=f"x: lies on cpu, t on {device}"):
        quant.matmul(x, t.to(device))
    with pytest.raises(TypeError, match=f"x: lies on {device}, t on cpu"):
        quant.matmul(asarray(x, device), t)
    with pytest.raises(TypeError):
        quant.quantize(asarray(x, device), "Q8_0")
    with pytest.raises(TypeError, match=f"out: lies on .*on {device}"):
        quant.dequantize(t.to(device), out=np.empty((3, 64), np.float32))
    with pytest.raises(TypeError, match=r"out: lies on .*on cpu"):
        quant.dequantize(t, out=asarray(np.empty((3, 64), np.float32), device))


def test_both_devices_are_kernel_devices():
    from lowlevel.cuda.device import CudaDevice
    from lowlevel.cudasim.device import CudaSimDevice

    own = {name for kind in (CudaDevice, CudaSimDevice) for name in vars(kind)}
    shared = {name for name in vars(KernelDevice) if not name.startswith("_")}
    assert issubclass(CudaDevice, KernelDevice) and issubclass(CudaSimDevice, KernelDevice)
    assert shared & own <= {"launch"}, "what both share must not be overridden"


def test_what_only_a_gpu_can_show_is_listed():
    """In cupy_api.py, by name: the module's own functions and what CudaDevice does in its own way."""
    from lowlevel.cuda import cupy_api
    from lowlevel.cuda.device import CudaDevice

    own = {name for name in vars(CudaDevice) if not name.startswith("_") and name != "has_streams"}
    own |= {
        name
        for name, value in vars(cupy_api).items()
        if getattr(value, "__module__", "") == cupy_api.__name__
    }
    assert not own - set(re.findall(r"\w+", cupy_api.__doc__))
