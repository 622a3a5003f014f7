"""A model that has the weights of another one, in the same memory."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import ModelConfig
from ..layers.rope import RotaryEmbedding
from ..models.lm import TransformerLM


def twin_of(
    model: TransformerLM, config: ModelConfig | None = None, tensors: Mapping[str, Tensor] | None = None
) -> TransformerLM:
    """A model whose weights are this one's, now and after every step; nothing else of it is, such as compiled blocks.

    config: another one that has the same weights, such as one with dropout. tensors: weights to have instead, such as
    those of a sharded model, gathered.
    """
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        twin = TransformerLM(config or model.config)
    twin.load_state_dict(model.state_dict() if tensors is None else tensors, assign=True)
    for module in twin.modules():
        if isinstance(module, RotaryEmbedding):
            module.to(twin.device)
    twin.eos_token_ids, twin.came_from = model.eos_token_ids, model.came_from
    return twin
