"""Norms, of every kind that a specification can name."""

from torch import Tensor

from .spec import Spec, Weights
from .variants import SQUARES, UNBRACKETED

CENTRED = frozenset(kind for kind in SQUARES if kind.startswith("layer"))
"""Kinds that subtract the mean first."""


def norm(spec: Spec, kind: str, eps: tuple[float, str], weights: Weights, names: tuple[str, ...], x: Tensor) -> Tensor:
    """A norm of this kind. eps: the number and its place; names: those of its weight and bias."""
    if kind == "none":
        return x
    weight: Tensor | float = 1.0
    if names and names[0] in weights:
        weight = weights[names[0]] + 1 if spec.plus_one else weights[names[0]]
    if kind in UNBRACKETED:
        square, formula = UNBRACKETED[kind]
        mean = x.mean(-1, keepdim=True)
        y = formula(x, mean, _root(square, *eps, x - mean), weight)
    else:
        y = (x if kind == "gain" else scaled(kind, *eps, x) * spec.norm_factor) * weight
    if names and names[1] and names[1] in weights:
        y = y + weights[names[1]]
    return y


def scaled(kind: str, eps: float, place: str, x: Tensor) -> Tensor:
    """x divided by its root mean square, or what `kind` has in its place. place: where eps is added."""
    if kind in CENTRED:
        x = x - x.mean(-1, keepdim=True)
    if kind.endswith("no_sqrt"):
        return x / (SQUARES[kind](x) + eps)
    root = _root(kind, eps, place, x)
    return x * root if kind == "multiplied" else x / root


def _root(kind: str, eps: float, place: str, x: Tensor) -> Tensor:
    """What x is divided by, or multiplied."""
    square = SQUARES[kind](x)
    return {
        "under": lambda: (square + eps).sqrt(),
        "outside": lambda: square.sqrt() + eps,
        "clamp": lambda: square.sqrt().clamp(min=eps),
        "clamp_square": lambda: square.clamp(min=eps).sqrt(),
    }[place]()
