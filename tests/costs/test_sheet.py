import json

import pytest

from prenorm import ModelConfig
from prenorm.costs.architecture import architecture_of
from prenorm.costs.devices import DEVICES, Device
from prenorm.costs.sheet import cost_sheet
from prenorm.errors import ConfigError

GPT2 = architecture_of(ModelConfig.preset("gpt2"))


def test_every_figure_goes_to_json_in_the_same_order():
    sheets = [json.dumps(cost_sheet(GPT2, context=64, device=DEVICES["l4"], memory=10**9)) for _ in range(2)]
    assert sheets[0] == sheets[1]
    assert list(json.loads(sheets[0])) == [
        *("settings", "parameters", "flops", "kv_cache_bytes", "decoding_bytes", "saved_bytes", "optimizer_bytes"),
        *("peak_bytes", "peak_bytes_watched", "not_counted", "hardware", "fits"),
    ]


def test_time_and_energy_are_the_operations_over_the_rate():
    sheet = cost_sheet(GPT2, context=64, device=Device(1e12, 1e9, 100, "here"), tokens=6400, utilisation=0.5)
    hardware, causal = sheet["hardware"], sheet["flops"]["causal"]
    step = causal["forward"]["total"] + causal["backward"]["total"]
    assert hardware["training_plain"]["step_seconds"] == pytest.approx(step / 5e11)
    assert hardware["training_plain"]["seconds"] == pytest.approx(100 * step / 5e11)
    assert hardware["training_plain"]["kilowatt_hours"] == pytest.approx(100 * step / 5e11 * 100 / 3.6e6)
    again = step + causal["recomputation"]["total"]
    assert hardware["training_checkpointed"]["step_seconds"] == pytest.approx(again / 5e11)
    read = 2 * sheet["parameters"]["total"] + sheet["kv_cache_bytes"]  # the weights, in bfloat16: this is the limit
    assert hardware["decoded_token"]["seconds"] == pytest.approx(read / 5e8)
    assert hardware["decoded_token"]["joules"] == pytest.approx(read / 5e8 * 100)


def test_what_a_device_does_not_say_is_not_known():
    hardware = cost_sheet(GPT2, context=64, device=Device(1e12, None, None, "here"))["hardware"]
    assert hardware["training_plain"]["seconds"] is not None
    assert hardware["training_plain"]["kilowatt_hours"] is None
    assert hardware["decoded_token"] == {"seconds": None, "joules": None}
    assert hardware["training_tokens"] == 20 * 124_439_808


def test_every_device_has_a_source_and_figures_of_its_size():
    for device in DEVICES.values():
        assert device.source
        assert device.flops_per_second > 1e13
        assert device.bytes_per_second > 1e11
        assert 50 < device.watts < 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 1025}, "context must be at most the model's max_seq_len, but 1025 is greater than 1024"),
        ({"context": 0}, "context must be an integer"),
        ({"context": 8, "batch": 0}, "batch must be an integer"),
        ({"context": 8, "tokens": 0}, "tokens must be an integer"),
        ({"context": 8, "utilisation": 1.5}, "utilisation must be at most 1"),
        ({"context": 8, "utilisation": 0.0}, "utilisation must be at least 0.001"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        cost_sheet(GPT2, **options)
