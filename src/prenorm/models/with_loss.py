"""The loss as a forward, for what looks at `forward` alone."""

from typing import Any

from torch import Tensor, nn


class ModelWithLoss(nn.Module):
    """`model.loss` as a forward: what DistributedDataParallel and FSDP2 are put around in training.

    They average gradients over processes, and gather weights, where a module is called, and not where one of its
    methods is. The parameters are the model's own: save and generate with the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """The loss. Arguments as in `model.loss`."""
        return self.model.loss(*args, **options)
