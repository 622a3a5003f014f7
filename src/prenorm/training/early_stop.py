"""Early stopping: a run ends when its held-out loss no longer falls, with the weights that had the lowest."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .ema import load_tensors


class EarlyStop:
    """The lowest held-out loss of a run so far, the weights that had it, and how many evaluations ago that was.

    patience: after so many evaluations in a row without a lower one the run is over. 0: it never is, and nothing is
    kept.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        self._patience = patience
        self._weights = dict(model.named_parameters())
        self._best: dict[str, Tensor] = {}
        self._best_loss, self.best_step, self._since = float("inf"), 0, 0

    @property
    def reached(self) -> bool:
        """Whether the run is over."""
        return bool(self._patience) and self._since >= self._patience

    def see(self, step: int, loss: float) -> None:
        """Take in the held-out loss after this step."""
        if not self._patience:
            return
        if loss < self._best_loss:
            self._best_loss, self.best_step, self._since = loss, step, 0
            self._best = {name: weight.detach().clone() for name, weight in self._weights.items()}
        else:
            self._since += 1

    def use_best(self) -> bool:
        """Give the model the weights that had the lowest loss, if there are any, and give whether there are."""
        if self._best:
            load_tensors(self._weights, self._best, "the best weights")
        return bool(self._best)

    def state_tensors(self) -> dict[str, Tensor]:
        """The best weights, by name; none before the first evaluation."""
        return dict(self._best)

    def to_fields(self) -> dict[str, Any]:
        """What `load` takes back, beside the tensors."""
        if not self._best:
            return {}
        return {"best_loss": self._best_loss, "best_step": self.best_step, "since": self._since}

    def load(self, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
        """Go on from what `state_tensors` and `to_fields` gave. Raises CheckpointError for those of another model."""
        if not (self._patience and fields):
            return
        self._best = {name: torch.empty_like(weight) for name, weight in self._weights.items()}
        load_tensors(self._best, tensors, "the best weights")
        self._best_loss, self.best_step = float(fields["best_loss"]), int(fields["best_step"])
        self._since = int(fields["since"])
