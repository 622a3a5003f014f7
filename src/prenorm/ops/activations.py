"""The functions that a family's feed-forward may have for SiLU, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from ..family import Activation
from .gelu import gelu
from .swiglu import silu


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), which is near GELU. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2."""
    return x * torch.sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2. Source: So et al. 2021, arXiv:2109.08668."""
    return torch.relu(x).square()


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "silu": silu,
        "gelu": gelu,
        "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
        "quick_gelu": quick_gelu,
        "relu": torch.relu,
        "relu_squared": relu_squared,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
)
