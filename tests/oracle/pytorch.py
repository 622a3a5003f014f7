"""PyTorch's own Transformer modules as witnesses: the same weights give the same numbers and gradients."""

from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor, nn

from prenorm.checkpoint.pytorch import from_pytorch, to_pytorch

from .inputs import mask_of, normal
from .tolerance import array, assert_accurate, assert_exact, rms


def witness(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """One of PyTorch's modules with the weights of ours, and in the same mode."""
    theirs.to(next(ours.parameters()).dtype).load_state_dict(to_pytorch(ours.state_dict()))
    return theirs.train(ours.training)


MASKS = ("none", "(q, k)", "(batch * heads, q, k)", "padding", "(q, k) and padding")


def masks(kind: str, batch: int, heads: int, q_seq: int, kv_seq: int, seed: int = 0) -> tuple[Tensor | None, ...]:
    """Their attn_mask and key_padding_mask, where True is who may not attend, and our mask, which says the same.

    Every query sees the last key: where it sees none, their answer is NaN or an average.
    """
    attn, padding, ours = None, None, None
    if "(q, k)" in kind:
        ours = _with_a_key(q_seq, kv_seq, seed=seed)
        attn = ~ours
    if "heads" in kind:
        ours = _with_a_key(batch, heads, q_seq, kv_seq, seed=seed)
        attn = ~ours.flatten(0, 1)
    if "padding" in kind:
        real = _with_a_key(batch, kv_seq, seed=seed)
        padding, ours = ~real, real[:, None, None] if ours is None else ours & real[:, None, None]
    return attn, padding, ours


def _with_a_key(*shape: int, seed: int) -> Tensor:
    mask = mask_of(*shape, seed=seed)
    mask[..., -1] = True
    return mask


def gradients(call: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of the inputs and of every parameter, under our names and in their order.

    A weight and its bias come together: the bias of keys moves all scores of a query alike, so that its gradient is
    rounding errors and nothing else.
    """
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    y = call(*inputs)
    names, parameters = zip(*module.named_parameters(), strict=True)
    weigh = normal(*y.shape, seed=99, dtype=y.dtype)
    grads = torch.autograd.grad((y * weigh).sum(), [*inputs, *parameters])
    named = dict(zip(names, grads[len(inputs) :], strict=True))
    ours = sorted((named if "q_proj" in str(names) else from_pytorch(named)).items())
    of_layers = [
        torch.cat([grad.flatten() for _, grad in group])
        for _, group in groupby(ours, key=lambda item: item[0].rpartition(".")[0])
    ]
    return [y.detach(), *grads[: len(inputs)], *of_layers]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Nothing but float64's rounding between the two, in the output and in each gradient."""
    for mine, other in zip(ours, theirs, strict=True):
        assert_exact(mine, array(other))


def assert_as_accurate(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """The contract, with theirs as the plain formula. Output, gradients of inputs, and those of all parameters in one,
    each brought to the same size: some parameters' alone are few numbers that all but cancel out."""
    ours, theirs, exact = map(_parameters_in_one, (ours, theirs, exact))
    sizes = [rms(array(each)) for each in exact]
    mine, other, wanted = (
        torch.cat([part.flatten() / size for part, size in zip(parts, sizes, strict=True)])
        for parts in (ours, theirs, exact)
    )
    assert_accurate(mine, array(wanted), other)


def _parameters_in_one(parts: list[Tensor]) -> list[Tensor]:
    """What `gradients` gives has the parameters last, flat."""
    return [part for part in parts if part.ndim > 1] + [torch.cat([part for part in parts if part.ndim == 1])]
