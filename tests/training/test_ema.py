import pytest
import torch
from torch import nn

from prenorm.errors import CheckpointError
from prenorm.training.ema import MovingAverage


def moved(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn_like(weight)


def test_the_average_is_the_formulas_whose_decay_is_small_at_first():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, 0.9)
    expected = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    for step in range(1, 200):
        moved(model)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, weight in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach().double()
    for name, tensor in average.state_tensors().items():
        torch.testing.assert_close(tensor.double(), expected[name], atol=1e-4, rtol=1e-5)
        assert not torch.allclose(tensor, dict(model.named_parameters())[name])


def test_the_average_is_in_place_for_a_while_also_where_something_raises():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, 0.5)
    moved(model)
    average.update(1)
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    averaged = {name: tensor.clone() for name, tensor in average.state_tensors().items()}

    def fail():
        with average.in_place():
            assert all(torch.equal(weight, averaged[name]) for name, weight in model.named_parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(weight, own[name]) for name, weight in model.named_parameters())
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in average.state_tensors().items())


def test_state_of_another_model_is_refused_and_changes_nothing():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, 0.5)
    before = {name: tensor.clone() for name, tensor in average.state_tensors().items()}
    for other in (nn.Linear(4, 2), nn.Linear(3, 2, bias=False), nn.Bilinear(3, 3, 2)):
        with pytest.raises(CheckpointError, match="the average of the weights must fit the model, but does not in"):
            average.load_state_tensors({name: tensor + 1 for name, tensor in other.state_dict().items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.state_tensors().items())
