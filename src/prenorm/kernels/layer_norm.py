"""PyTorch's fused layer normalisation behind the signature that the op needs."""

import torch
from torch import Tensor

from ..private_torch import is_transformed
from .kernel import Kernel


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last dim. Sums of squares overflow beyond |x| = 1e17; the formula's do not."""
    y = torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)
    return y.to(x.dtype)  # under autocast on a GPU it comes back in float32


def supports(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """One dtype throughout (the kernel takes no other mixtures on every device), and not under torch.func."""
    return x.dtype == weight.dtype == bias.dtype and not is_transformed()


KERNEL = Kernel(
    op="layer_norm",
    devices=("cpu", "cuda"),
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    run=layer_norm,
    supports=supports,
    gain="PyTorch's fused layer normalisation passes over memory once",
    fallback="the formula: six passes over memory",
)
