import shutil

import pytest
import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.errors import ConfigError
from prenorm.training.device import Device, choose_device, compile_blocks, hold_on_to_memory

CPU = Device(torch.device("cpu"), torch.float32)


def test_a_named_device_and_format_are_taken(tiny):
    assert choose_device(tiny(device="cpu", dtype="float32")) == CPU
    assert choose_device(tiny(device="cpu", dtype="bfloat16")) == Device(torch.device("cpu"), torch.bfloat16)
    pure = Device(torch.device("cpu"), torch.bfloat16, pure=True)
    assert choose_device(tiny(device="cpu", dtype="bfloat16-pure")) == pure
    for dtype in ("float32", "bfloat16", "bfloat16-pure", "float16"):
        assert choose_device(tiny(device="cpu", dtype=dtype)).format == dtype


def test_float16_on_a_cpu_is_warned_of_and_nothing_else_is(tiny, said):
    for dtype in ("float32", "bfloat16", "bfloat16-pure", "auto"):
        choose_device(tiny(device="cpu", dtype=dtype), said.append)
    assert said == []
    choose_device(tiny(device="cpu", dtype="float16"), said.append)
    assert "float16 is some 30 times slower than float32 on a CPU" in said[0]


@pytest.mark.parametrize("has", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}, {}])
def test_auto_is_bfloat16_where_the_hardware_multiplies_it(tiny, monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    expected = torch.bfloat16 if any(has.values()) else torch.float32
    assert choose_device(tiny(device="cpu", dtype="auto")).dtype == expected


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:what"])
def test_a_device_that_is_not_there_is_refused(tiny, device):
    with pytest.raises(ConfigError, match=f"device must be one of this machine, but '{device}' is not"):
        choose_device(tiny(device=device))


def test_autocast_is_for_narrow_products_between_wide_weights():
    x, cpu = torch.ones(2, 2), torch.device("cpu")
    with CPU.autocast():
        assert (x @ x).dtype == torch.float32
    with Device(cpu, torch.bfloat16).autocast():
        assert (x @ x).dtype == torch.bfloat16
    with Device(cpu, torch.float16).autocast():
        assert (x @ x).dtype == torch.float16
    with Device(cpu, torch.bfloat16, pure=True).autocast():
        assert (x @ x).dtype == torch.float32


def test_without_a_compiler_blocks_stay_as_they_are_aloud(monkeypatch, said):
    model = TransformerLM(ModelConfig(40, d_model=16, num_layers=1, num_heads=2, max_seq_len=16))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compile_blocks(model, CPU, said.append)
    assert "There is no C++ compiler" in said[0]
    assert model(torch.arange(4)).shape == (4, 40)


def test_holding_on_to_memory_changes_nothing_else():
    hold_on_to_memory()
    assert torch.equal(torch.ones(2**20).sum(), torch.tensor(2.0**20))
