"""A module whose forward is the loss, for wrappers that only handle `forward`."""

from typing import Any

from torch import Tensor, nn


class ModelWithLoss(nn.Module):
    """`model.loss` as a forward, to be wrapped by DistributedDataParallel or FSDP2 in training.

    These average gradients and gather weights when a module is called, but not when one of its methods is called. The
    parameters are the model's own: save and generate with the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """The loss. Arguments as in `model.loss`."""
        return self.model.loss(*args, **options)
