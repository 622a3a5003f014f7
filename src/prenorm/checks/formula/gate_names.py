"""What the names of the feed-forward's projections say of which of them is the gate: the numbers cannot tell.

down(silu(a(x)) * b(x)) is SwiGLU whatever a and b are called.
"""

import re
from typing import Literal

from .parameters import Pieces


def swapped(reading: Pieces) -> Literal["surely", "perhaps", "no"]:
    """Whether silu is applied to the projection that its name calls up, or w3, and not to the gate, or w1.

    Perhaps, where only one of the two names says what it is: then nobody can say what the other one means.
    """
    if not {"gate", "up", "down"} <= reading.keys():
        return "no"
    activated, multiplied, down = _own_names([reading[name].parameters[0] for name in ("gate", "up", "down")])
    if activated == multiplied:
        return "no"
    if "w3" in _words(activated) and "w1" in _words(multiplied) and "w2" in _words(down):
        return "surely"
    if _says_up(activated) and _says_gate(multiplied):
        return "surely"
    one_says_so = (_says_up(activated) and not _says_up(multiplied)) or (
        _says_gate(multiplied) and not _says_gate(activated)
    )
    return "perhaps" if one_says_so and not _is_first(activated) else "no"


def _own_names(names: list[str]) -> list[str]:
    """The names without the path that they share, such as gated_mlp."""
    parts = [name.split(".") for name in names]
    while len({one[0] for one in parts}) == 1 and all(len(one) > 1 for one in parts):
        parts = [one[1:] for one in parts]
    return [".".join(one) for one in parts]


def _says_gate(name: str) -> bool:
    return "gate" in name.lower()


def _is_first(name: str) -> bool:
    """Whether it is the first by its number, as the handout's W1 is: then silu belongs to it."""
    return name.removesuffix(".weight").endswith("1")


def _says_up(name: str) -> bool:
    return not _says_gate(name) and re.search(r"(^|[._w])up", name.lower()) is not None


def _words(name: str) -> set[str]:
    return {word for part in name.lower().split(".") for word in part.split("_")}
