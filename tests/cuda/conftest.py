"""The CUDA side's tests: on the simulator, and with ``-m gpu`` the same on a GPU."""

import numpy as np
import pytest
from attention_calls import products_by
from quant_cases import ORDERS

from lowlevel import cudasim, devices
from lowlevel.gpu.kernel_device import KernelDevice


@pytest.fixture(params=["cudasim", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request):
    """The name of a device that runs the kernels."""
    if request.param != "cudasim":
        try:
            devices.get(request.param)
        except (ImportError, ValueError) as reason:
            pytest.skip(str(reason))
    return request.param


@pytest.fixture(params=["wgmma", "mma"])
def way(request):
    """The test runs with fused attention by warpgroups' products, where the device has them, and without."""
    with products_by(request.param):
        yield request.param


@pytest.fixture
def launched(monkeypatch):
    """The kernels that the test has launched so far."""
    kernels = []
    launch = KernelDevice.launch

    def recording(device, kernel, *arguments, **options):
        launch(device, kernel, *arguments, **options)
        kernels.append(kernel)

    monkeypatch.setattr(KernelDevice, "launch", recording)
    return kernels


@pytest.fixture(params=ORDERS)
def order(request):
    """The test runs on the simulator with this order of threads and blocks."""
    with cudasim.settings(order=request.param):
        yield request.param


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)
