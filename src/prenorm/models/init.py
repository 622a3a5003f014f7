"""The initialisation of a language model's weights."""

import math
from collections.abc import Iterator

from torch import Tensor, nn

from ..layers.embedding import Embedding
from ..layers.family_norm import FamilyLayerNorm, PerHeadLayerNorm
from ..layers.linear import Linear
from ..layers.norm import RMSNorm

STD = 0.02  # GPT-2's; Radford et al. 2019


def initialise(model: nn.Module, num_layers: int) -> None:
    """Initialise all weights from torch's global generator, keeping the scale of activations and gradients over depth.

    Matrices and embeddings: normal, standard deviation 0.02. The two projections onto the residual path (o_proj,
    down_proj): divided by sqrt(2 num_layers), because 2 num_layers of them add up. Norms 1, biases 0.
    Weights without data (meta) stay so.
    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    if all(parameter.is_meta for parameter in model.parameters()):
        return  # each drawing takes half a millisecond there
    for name, module in model.named_modules():
        _initialise(name, module, num_layers)


def first_weights(model: nn.Module, num_layers: int) -> Iterator[tuple[str, Tensor]]:
    """The weights that `initialise` gives a model of the same shapes on a CPU, by name and bit for bit, one by one.

    model: without data (meta), as it is afterwards. No more than one module's weights are in memory.
    """
    for name, part in model.named_modules():
        if hasattr(part, "reset_parameters"):
            _initialise(name, part.to_empty(device="cpu"), num_layers)
            yield from ((f"{name}.{own}", weight.detach()) for own, weight in part.named_parameters())
            part.to_empty(device="meta")


def _initialise(name: str, module: nn.Module, num_layers: int) -> None:
    """The part that one module has in it; none for a module without weights of its own."""
    if isinstance(module, RMSNorm | FamilyLayerNorm | PerHeadLayerNorm):
        module.reset_parameters()
    elif isinstance(module, Linear | Embedding):
        writes_to_residual = name.endswith(("o_proj", "down_proj"))
        nn.init.normal_(module.weight, std=STD / math.sqrt(2 * num_layers) if writes_to_residual else STD)
        if isinstance(module, Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
