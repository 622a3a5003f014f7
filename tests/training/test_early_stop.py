import pytest
import torch
from torch import nn

from prenorm.errors import CheckpointError
from prenorm.training.early_stop import EarlyStop


def see_all(stop, model, losses, first=1):
    """What `reached` is after each of these losses; the weights are the number of the evaluation."""
    reached = []
    for number, loss in enumerate(losses, start=first):
        nn.init.constant_(model.weight, number)
        stop.see(10 * number, loss)
        reached.append(stop.reached)
    return reached


def test_a_run_is_over_after_so_many_evaluations_without_a_lower_loss():
    model = nn.Linear(2, 2)
    stop = EarlyStop(model, 2)
    assert see_all(stop, model, [3.0, 2.0, 2.5, 1.5, 1.5, 1.6]) == [False, False, False, False, False, True]
    assert stop.best_step == 40
    assert stop.use_best()
    assert torch.equal(model.weight, torch.full((2, 2), 4.0))


def test_without_patience_nothing_is_kept_and_no_run_is_over():
    model = nn.Linear(2, 2)
    stop = EarlyStop(model, 0)
    assert see_all(stop, model, [1.0, 2.0, 3.0]) == [False] * 3
    assert (stop.state_tensors(), stop.to_fields(), stop.use_best()) == ({}, {}, False)


@pytest.mark.parametrize("seen", range(6))
def test_it_goes_on_from_its_state(seen):
    losses, model, again = [3.0, 2.0, 2.5, 1.5, 1.7, 1.6], nn.Linear(2, 2), nn.Linear(2, 2)
    stop, resumed = EarlyStop(model, 2), EarlyStop(again, 2)
    see_all(stop, model, losses[:seen])
    resumed.load({name: tensor.clone() for name, tensor in stop.state_tensors().items()}, stop.to_fields())
    for one, weights in ((stop, model), (resumed, again)):
        assert see_all(one, weights, losses[seen:], first=seen + 1) == ([False] * 5 + [True])[seen:]
        assert one.use_best()
        assert torch.equal(weights.weight, torch.full((2, 2), 4.0))


def test_the_best_weights_of_another_model_are_refused():
    with pytest.raises(CheckpointError, match="the best weights must fit the model"):
        EarlyStop(nn.Linear(2, 2), 1).load(
            {"weight": torch.zeros(3, 2)}, {"best_loss": 1.0, "best_step": 1, "since": 0}
        )
