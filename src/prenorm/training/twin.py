"""A model that has the weights of another one, in the same memory."""

import torch

from ..config import ModelConfig
from ..layers.rope import RotaryEmbedding
from ..models.lm import TransformerLM


def twin_of(model: TransformerLM, config: ModelConfig | None = None) -> TransformerLM:
    """A model whose weights are this one's, now and after every step; nothing else of it is, such as compiled blocks.

    config: another one that has the same weights, such as one with dropout.
    """
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        twin = TransformerLM(config or model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    for module in twin.modules():
        if isinstance(module, RotaryEmbedding):
            module.to(model.device)
    twin.eos_token_ids = model.eos_token_ids
    return twin
