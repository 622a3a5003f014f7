"""Narrow number formats: a scaled loss for float16, a rounded copy of the model for pure bfloat16; finite weights."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrenormError
from ..layers.sharded import local_part
from ..models.lm import TransformerLM

FIRST_SCALE = 2.0**16
GROWS_AFTER = 2000  # steps in a row without an overflow


class LossScale:
    """What a float16 loss is multiplied by before the backward pass, and its gradient divided by after it.

    Without it most gradients would be below 6e-8, which is zero in float16. A gradient that overflows halves the scale,
    down to 1; 2,000 steps in a row without one double it. All scales are powers of two, so that nothing is rounded.
    Source: Micikevicius et al. 2018, arXiv:1710.03740.
    """

    def __init__(self) -> None:
        self.scale, self._good_steps = FIRST_SCALE, 0

    def succeeded(self) -> None:
        """The gradient of a step was finite."""
        self._good_steps += 1
        if self._good_steps == GROWS_AFTER:
            self.scale, self._good_steps = 2 * self.scale, 0

    def overflowed(self) -> None:
        """The gradient of a step was not finite, though its loss was."""
        self.scale, self._good_steps = max(1.0, self.scale / 2), 0

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients by the scale."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1 / self.scale)

    def to_fields(self) -> dict[str, Any]:
        """What `load_fields` takes back."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load_fields(self, fields: Mapping[str, Any]) -> None:
        """Go on from what `to_fields` gave."""
        self.scale, self._good_steps = float(fields["scale"]), int(fields["good_steps"])


class RoundedCopy:
    """A copy of a model in another format, which computes, while the model itself keeps the weights in float32.

    The copy follows from the weights alone, so that no checkpoint needs it.
    """

    def __init__(self, model: TransformerLM, dtype: torch.dtype) -> None:
        self.model, self._weights = copy.deepcopy(model).to(dtype), model

    def hand_over_gradients(self) -> None:
        """Add the copy's gradients to the model's, in float32, and drop them."""
        for rounded, weight in self._pairs():
            if rounded.grad is None:
                continue
            if weight.grad is None:
                weight.grad = rounded.grad.to(weight.dtype)
            else:
                weight.grad += rounded.grad
            rounded.grad = None

    @torch.no_grad()
    def follow(self) -> None:
        """Round the weights anew."""
        for rounded, weight in self._pairs():
            rounded.copy_(weight)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Of both models: they get other parameters where they are spread over processes."""
        return zip(self.model.parameters(), self._weights.parameters(), strict=True)


@torch.no_grad()
def check_finite(model: nn.Module, largest: Callable[[int], list[int]] = lambda number: [number]) -> None:
    """Raise PrenormError unless all weights are finite, in all processes. The device is asked once.

    largest: gives the largest of all processes' numbers.
    """
    weights = {name: local_part(weight) for name, weight in model.named_parameters()}
    ends = [torch.stack(weight.aminmax()) for weight in weights.values() if weight.numel()]
    if largest(int(bool(ends) and not bool(torch.stack(ends).isfinite().all()))) != [0]:
        names = [name for name, weight in weights.items() if not bool(weight.isfinite().all())] or ["another process"]
        raise PrenormError(
            f"weights must stay finite to be saved, but are not in {', '.join(names[:5])}; checkpoints are from before "
            "that: start again with lower learning rates."
        )
