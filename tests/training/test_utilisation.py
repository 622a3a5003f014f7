import time

import pytest
import torch

import prenorm.training.trainer as trainer_module
from prenorm import ModelConfig
from prenorm.family import Family
from prenorm.training import utilisation
from prenorm.training.config import TrainConfig
from prenorm.training.device import Device
from prenorm.training.display import Display
from prenorm.training.tokens import prepare_text
from prenorm.training.trainer import Trainer
from prenorm.training.utilisation import Utilisation, product_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_is_that_of_a_product_and_takes_less_than_a_second(dtype):
    start = time.process_time()
    rate = product_rate(Device(CPU, dtype))
    assert (time.process_time() - start) / torch.get_num_threads() < 1
    assert 1e8 < rate < 1e14


def test_a_slow_machine_multiplies_small_matrices_once_and_a_fast_one_all(monkeypatch):
    def sides_at(rate):
        sides = []

        def seconds_of_product(x, weight):
            assert x.dtype == weight.dtype == torch.bfloat16
            sides.append(len(x))
            return 2 * len(x) ** 3 / rate

        monkeypatch.setattr(utilisation, "_seconds_of_product", seconds_of_product)
        assert product_rate(Device(CPU, torch.bfloat16)) == pytest.approx(rate)
        return sides

    assert sides_at(1e8) == [512]
    assert sides_at(1e15) == [512] * 3 + [1024] * 3 + [2048] * 3


def test_utilisation_of_a_family_counts_its_windows_and_its_two_matrices():
    family = Family(gated=False, windows=(2, 0))
    config = ModelConfig(vocab_size=100, d_model=16, num_layers=2, num_heads=2, d_ff=32, family=family)
    matrices = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    causal = 3 * (2 * 8 * (matrices + 100 * 16) + 2 * 2 * 16 * (36 + 15))  # pairs without a window, and with one of 2
    assert Utilisation(config, 1e9).of(8, 1000.0)["mfu_causal"] == pytest.approx(causal / 8 * 1000 / 1e9)


def test_utilisation_is_the_models_operations_over_the_rate():
    config = ModelConfig(vocab_size=100, d_model=16, num_layers=2, num_heads=2, d_ff=32)
    shares = Utilisation(config, 1e9).of(8, 1000.0)
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    causal = 3 * (2 * 8 * (matrices + 100 * 16) + 2 * 2 * 2 * 16 * 36)  # 36 pairs of a query and a key that it sees
    assert shares["mfu_causal"] == pytest.approx(causal / 8 * 1000 / 1e9)
    parameters = matrices + 2 * 100 * 16 + 5 * 16
    assert shares["mfu_6n_attention"] == pytest.approx((6 * parameters + 12 * 2 * 16 * 8) * 1000 / 1e9)


def test_measuring_changes_no_other_number_of_a_run(tiny, tmp_path, monkeypatch):
    def steps(config: TrainConfig):
        data = prepare_text(config, tmp_path / "text", lambda _: None)
        trainer = Trainer(config, data, Device(CPU, torch.float32), Display(quiet=True))
        return [trainer.step(step)["loss"] for step in (1, 2)], torch.get_rng_state()

    quiet, state = steps(tiny())
    monkeypatch.setattr(trainer_module, "product_rate", product_rate)
    measured, state_after = steps(tiny())
    assert measured == quiet
    assert torch.equal(state, state_after)
    state = torch.get_rng_state()
    product_rate(Device(CPU, torch.float32))
    assert torch.equal(state, torch.get_rng_state())
