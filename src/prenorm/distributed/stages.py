"""The stages of a model: consecutive layers, each process with one stage or several, and stand-ins for the rest."""

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.lm import TransformerLM
from .layout import stage_layers


def split_into_stages(model: TransformerLM, pp: int, rank: int, stages_per_rank: int = 1) -> list[TransformerLM]:
    """The stages that one of `pp` ranks runs: stage rank, rank + pp, ..., each a model with stand-ins for other stages.

    Afterwards `model` has only the parts of these stages, under the names that they had, so that its parameters and
    its state dict are the rank's share; with one stage a rank it is that stage. A tied head is the embedding's weight
    on the last stage, too.
    Raises ConfigError where there are fewer layers than stages.
    """
    layers = stage_layers(model.config.num_layers, pp * stages_per_rank)
    numbers = range(rank, len(layers), pp)
    if stages_per_rank == 1:
        _keep(model, layers[rank], first=rank == 0, last=rank == pp - 1)
        return [model]
    stages = [_copy(model) for _ in numbers]
    for stage, number in zip(stages, numbers, strict=True):
        _keep(stage, layers[number], first=number == 0, last=number == len(layers) - 1)
    _keep(model, [layer for number in numbers for layer in layers[number]], first=rank == 0, last=rank == pp - 1)
    if rank == pp - 1:
        model.embedding = stages[-1].embedding  # its weight is the tied head
    return stages


class Elsewhere(nn.Module):
    """In the place of a block or a norm that another process runs: gives its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """x."""
        return x

    def train(self, mode: bool = True) -> "Elsewhere":
        """It has no modes, and so is never checkpointed."""
        return self


class Received(nn.Module):
    """In the place of the embedding on later stages: gives what the stage before sent.

    weight: the embedding's, where the last stage needs it as the tied head.
    """

    def __init__(self, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_parameter("weight", weight)
        self.activations: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        """The activations that were last put here, once."""
        if self.activations is None:
            raise ConfigError(
                "this process has only some layers of the model, which cannot run by themselves; call the pipeline, "
                "or open a checkpoint of the run for the whole model."
            )
        activations, self.activations = self.activations, None
        return activations


def _keep(model: TransformerLM, layers: Collection[int], *, first: bool, last: bool) -> None:
    """Put stand-ins in the place of all other layers, and of what comes before the first and after the last."""
    for number in range(model.config.num_layers):
        if number not in layers:
            model.layers[number] = Elsewhere()
    if not first:
        weight = model.embedding.weight if last and model.config.tie_embeddings else None
        model.embedding = cast(Any, Received(weight))
        model.positions = None
    if not last:
        model.final_norm, model.lm_head = Elsewhere(), None


def _copy(model: TransformerLM) -> TransformerLM:
    """Another model with the same parts."""
    with torch.device("meta"):
        copy = TransformerLM(model.config)
    copy.layers = nn.ModuleList(model.layers)
    for name in ("embedding", "positions", "final_norm", "lm_head"):
        setattr(copy, name, getattr(model, name))
    return copy.train(model.training)
