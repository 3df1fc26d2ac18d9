"""What a plan says of all layers, from passes with one layer of each kind."""

import pytest

from lowlevel import devices
from quant.models.choices import choices_of
from quant.models.fit import Setting
from quant.models.kqcap_memory import run_options
from quant.models.layers import record_pass
from quant.models.memory_model import memory_model
from quant.models.plan import Planned

MODELS = {
    "deepseek-r1": "Q2_K",
    "deepseek-v2-lite": "IQ4_NL",
    "gpt-oss-20b": "MXFP4",
    "gemma-3-4b": "Q4_K",
}


@pytest.mark.parametrize("mla", [0, 1, None])
@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_passes_over_all_layers(name, mla):
    config = memory_model(name, MODELS[name]).config
    setting = Setting(4096, 256, kv_type="f16", mla=mla, device="cpu")
    planned = Planned(config, choices_of(config, devices.get("cpu"), **run_options(setting)))
    found = planned.weights()
    assert not any(of_all for of_all, *_ in planned._passes)  # which is what takes long
    sizes = list(planned._passes_at.values())
    passes = [record_pass(config, planned.choices, n, out, n_kv) for n, out, n_kv in sizes]
    operations = [op for each in passes for op in each.operations]
    assert len(config.layers) > 20 and all(found)
    assert set(found[0]) == {weight for op in operations for weight in op.matrices}
    assert set(found[1]) == {weight for op in operations for weight in op.vectors}
    constants = {key: made[0].n_bytes for each in passes for key, made in each.constants.items()}
    assert {key: made[0].n_bytes for key, made in planned.constants().items()} == constants
