"""Initialisation from a truncated normal distribution."""

from torch import Tensor, nn

from ..private_torch import FakeTensor


def truncated_normal_(weight: Tensor, std: float) -> None:
    """Fill a weight from a normal distribution truncated at 3 standard deviations. Fake tensors stay as they are."""
    if not isinstance(weight, FakeTensor):  # PyTorch's trunc_normal_ reads the values that it drew
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
