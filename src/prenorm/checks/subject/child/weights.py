"""What a block needs before it is used: weights with shapes, and without torch's parametrizations."""

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from .errors import NoShapesError, unfinished


def give_shapes(block: nn.Module, d_model: int) -> None:
    """Run a block with lazy modules, such as nn.LazyLinear, once: their weights have no shape before."""
    lazy = [] if unfinished(block) else [one for one in block.parameters() if nn.parameter.is_lazy(one)]
    if lazy:
        try:
            with torch.no_grad():
                block(torch.zeros(2, 7, d_model, device=lazy[0].device))
        except Exception as error:
            raise NoShapesError(
                f"weights of lazy modules have no shapes before a call, and block(x) raises {error}"
            ) from None


def plain_weights(block: nn.Module) -> None:
    """Put what torch's weight norm and other parametrizations give in their place: any values are right for a weight.

    A parametrization of the learner's own stays: it is part of what is judged.
    """
    for module in block.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for name, steps in list(module.parametrizations.items()):
                if all(type(step).__module__.startswith("torch.") for step in steps.children()):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
