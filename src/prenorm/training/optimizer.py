"""The optimiser: Muon for the blocks' matrices, AdamW for the embedding, the head and the vectors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .config import TrainConfig


class MuonAndAdamW:
    """Two optimisers that step as one, each group at its own learning rate times a scale that the schedule gives.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes the update of a matrix orthogonal; it is meant
    for hidden matrices, so the rest has AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). A tied head is the
    embedding. Vectors have no weight decay.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        matrices, others = _groups(model, config)
        adamw = torch.optim.AdamW(others, betas=config.adam_betas, eps=config.adam_eps, fused=True)
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if matrices["params"]:
            self.optimizers.append(torch.optim.Muon([matrices], momentum=config.muon_momentum))
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        self._full_rates = [(group, group["lr"]) for group in groups]

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
        """Take over what `state_tensors` gave, bit for bit. Raises CheckpointError for names that are not ours."""
        states: dict[str, dict[str, Tensor]] = {name: {} for name in self._names.values()}
        for key, tensor in tensors.items():
            name, _, what = key.partition(":")
            if name not in states:
                raise CheckpointError(f"the optimiser's state has {key}, but the model has no parameter {name}.")
            states[name][what] = tensor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    # Averages lie where their parameter does; fused AdamW wants its step count there too.
                    optimizer.state[parameter] = {
                        what: tensor.to(parameter.device, copy=True)
                        for what, tensor in states[self._names[parameter]].items()
                    }


def _groups(model: nn.Module, config: TrainConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Muon's group of parameters, and AdamW's groups, none of them empty."""
    matrices: dict[str, Any] = {"params": [], "lr": config.muon_lr, "weight_decay": config.weight_decay}
    embedding: dict[str, Any] = {"params": [], "lr": config.embedding_lr, "weight_decay": config.weight_decay}
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
    return matrices, [group for group in (embedding, head, vectors) if group["params"]]
