"""The optimiser: Muon for the blocks' matrices, AdamW for the embedding, the head and the vectors; or AdamW for all."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..layers.sharded import is_sharded
from .config import TrainConfig
from .muon import Muon


class MuonAndAdamW:
    """Two optimisers that step as one, each group at its own learning rate times a scale that the schedule gives.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes the update of a matrix orthogonal; it is meant
    for hidden matrices, so the rest has AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). With optimizer="adamw"
    AdamW has the matrices, too, and all groups have one learning rate, `lr`. A tied head is the embedding.
    Weight decay is for matrices and an untied head: embeddings, norms and biases have none.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self._config = config
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        muon, adamw = _groups(model, config)
        adamw = [part for group in adamw for part in _by_mesh(group)]
        options: dict[str, Any] = {"betas": config.adam_betas, "eps": config.adam_eps, "fused": True}
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(adamw, **options)]
        if muon:
            self.optimizers.append(Muon(muon, momentum=config.muon_momentum))
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        self._full_rates = [(group, group["lr"]) for group in groups]

    @property
    def full_rate(self) -> float:
        """The learning rate that a run reports, before the schedule: that of the blocks' matrices."""
        return self._config.muon_lr if self._config.lr is None else self._config.lr

    def step(self, scale: float) -> None:
        """Update every weight from its gradient, at `scale` times the full learning rates, and drop the gradients."""
        for group, learning_rate in self._full_rates:
            group["lr"] = learning_rate * scale
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that the optimisers remember, as tensors named parameter:what, such as embedding.weight:exp_avg."""
        return {
            f"{self._names[parameter]}:{what}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for what, value in state.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` gave, bit for bit.

        Raises CheckpointError, and changes nothing, unless it is that of a model with just these parameters: each of
        them has all of its tensors, or none of them has one, as before the first step.
        """
        problems = self._problems(tensors) if tensors else []
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError(f"the optimiser's state must fit the model, but {'; '.join(problems[:5])}{more}.")
        states: dict[str, dict[str, Tensor]] = {name: {} for name in self._names.values()}
        for key, tensor in tensors.items():
            name, _, what = key.partition(":")
            states[name][what] = tensor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    # Averages lie where their parameter does; fused AdamW wants its step count there too.
                    optimizer.state[parameter] = {
                        what: tensor.to(parameter.device, copy=True)
                        for what, tensor in states[self._names[parameter]].items()
                    }

    def _problems(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """What is missing, left over or of another shape."""
        shapes: dict[str, tuple[int, ...]] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.requires_grad:
                        name, shape = self._names[parameter], tuple(parameter.shape)
                        shapes |= {f"{name}:{what}": shape for what in _AVERAGES[type(optimizer)]}
                        shapes |= {f"{name}:step": ()} if isinstance(optimizer, torch.optim.AdamW) else {}
        missing = [f"{key} is missing" for key in sorted(shapes.keys() - tensors.keys())]
        foreign = [f"the model has no {key}" for key in sorted(tensors.keys() - shapes.keys())]
        return [
            *(missing + foreign),
            *(
                f"{key} has shape {tuple(tensors[key].shape)} where {shape} is needed"
                for key, shape in sorted(shapes.items())
                if key in tensors and tuple(tensors[key].shape) != shape
            ),
        ]


# What an optimiser remembers of a parameter, in its shape.
_AVERAGES: dict[type, tuple[str, ...]] = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",),
}


def _groups(model: nn.Module, config: TrainConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Muon's groups of parameters, and AdamW's, none of them empty."""
    matrices: dict[str, Any] = {"params": [], "lr": config.muon_lr, "weight_decay": config.weight_decay}
    embedding: dict[str, Any] = {"params": [], "lr": config.embedding_lr, "weight_decay": 0.0}
    head: dict[str, Any] = {"params": [], "lr": config.head_lr, "weight_decay": config.weight_decay}
    vectors: dict[str, Any] = {"params": [], "lr": config.vector_lr, "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            group = vectors
        elif name.rpartition(".")[0].endswith("embedding"):  # of tokens, or of learned positions
            group = embedding
        elif name.startswith("lm_head."):
            group = head
        else:
            group = matrices
        group["params"].append(parameter)
    muon, adamw = [matrices], [embedding, head, vectors]
    if config.optimizer == "adamw":
        muon, adamw = [], [matrices, *adamw]
        for group in adamw:
            group["lr"] = config.lr
    return [group for group in muon if group["params"]], [group for group in adamw if group["params"]]


def _by_mesh(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group, divided so that all parameters of one are whole, or sharded over one mesh: fused AdamW needs that."""
    parts: dict[Any, list[Any]] = {}
    for parameter in group["params"]:
        parts.setdefault(parameter.device_mesh if is_sharded(parameter) else None, []).append(parameter)
    return [{**group, "params": parameters} for parameters in parts.values()]
