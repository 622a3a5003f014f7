"""Norms, of every kind that a specification can name."""

from torch import Tensor

from .spec import Spec, Weights
from .variants import SQUARES


def norm(spec: Spec, kind: str, eps: tuple[float, str], weights: Weights, names: tuple[str, ...], x: Tensor) -> Tensor:
    """A norm of this kind. eps: the number and its place; names: those of its weight and bias."""
    if kind == "none":
        return x
    y = x if kind == "gain" else scaled(kind, *eps, x) * spec.norm_factor
    if names and names[0] in weights:
        y = y * (weights[names[0]] + 1 if spec.plus_one else weights[names[0]])
    if names and names[1] and names[1] in weights:
        y = y + weights[names[1]]
    return y


def scaled(kind: str, eps: float, place: str, x: Tensor) -> Tensor:
    """x divided by its root mean square, or what `kind` has in its place. place: where eps is added."""
    if kind in ("layer", "layer_unbiased"):
        x = x - x.mean(-1, keepdim=True)
    square = SQUARES[kind](x)
    if kind == "no_sqrt":
        return x / (square + eps)
    root = {
        "under": lambda: (square + eps).sqrt(),
        "outside": lambda: square.sqrt() + eps,
        "clamp": lambda: square.sqrt().clamp(min=eps),
        "clamp_square": lambda: square.clamp(min=eps).sqrt(),
    }[place]()
    return x / root
