"""How weights begin: a normal distribution without its tails."""

from torch import Tensor, nn

from ..private_torch import FakeTensor


def truncated_normal_(weight: Tensor, std: float) -> None:
    """Fill a weight with normal numbers of this standard deviation, none beyond 3 of them. Fake tensors have none."""
    if not isinstance(weight, FakeTensor):  # PyTorch's own looks at what it drew
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
