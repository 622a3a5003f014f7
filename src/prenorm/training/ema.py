"""A moving average of the weights, which is often better than the last of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import CheckpointError


class MovingAverage:
    """average = d average + (1 - d) weights after every step, with d = min(decay, (1 + step) / (10 + step)).

    The second term lets the average forget the first weights soon. It is in float32, beside the model.
    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = dict(model.named_parameters())
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self._averages.values()), list(self._weights.values()), None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average as its weights, and its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(kept)

    def state_tensors(self) -> dict[str, Tensor]:
        """The average of each parameter, by its name."""
        return dict(self._averages)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` gave, bit for bit. Raises CheckpointError for those of another model."""
        load_tensors(self._averages, tensors, "the average of the weights")


@torch.no_grad()
def load_tensors(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into others by name. Raises CheckpointError, and changes nothing, unless all of them fit."""
    shapes, given = ({name: tuple(one.shape) for name, one in each.items()} for each in (into, tensors))
    if shapes != given:
        names = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
        raise CheckpointError(f"{what} must fit the model, but does not in {', '.join(names[:5])}.")
    for name, tensor in tensors.items():
        into[name].copy_(tensor)
