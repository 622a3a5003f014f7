"""Readings in which one weight has several roles: another is unused, or there is no other."""

from collections.abc import Sequence

from .assign_attention import readings_of_few
from .parameters import Parameters, Pieces, Sizes, distinct


def sharing(reading: Pieces, roles: Sequence[str]) -> list[str]:
    """The roles that have the weight of another one of them."""
    held = [(reading[role].parameters, reading[role].places) for role in roles if role in reading]
    there = [role for role in roles if role in reading]
    return [role for role, one in zip(there, held, strict=True) if held.count(one) > 1]


ONE_FOR_SEVERAL = ({"k": "q"}, {"q": "v"}, {"k": "v"}, {"q": "v", "k": "v"})
"""Which of queries, keys and values is computed with the weight of which other."""


def one_weight_twice(readings: list[Pieces], found: Parameters, sizes: Sizes) -> list[Pieces]:
    """Readings in which one weight gives several of queries, keys and values. readings: where each has its own."""
    out = []
    for reading in (*readings, *readings_of_few(found, sizes)):
        for roles in ONE_FOR_SEVERAL:
            pieces = dict(reading)
            for role, other in roles.items():
                for end in ("", "_bias"):
                    pieces.pop(role + end, None)
                    if other + end in reading:
                        pieces[role + end] = reading[other + end]
            out.append(pieces)
    return distinct(out)


def one_for_gate_and_up(readings: list[Pieces]) -> list[Pieces]:
    """Readings in which one weight gives both gate and up. readings: where each has its own."""
    out = []
    for reading in readings:
        for role, other in (("gate", "up"), ("up", "gate")):
            if other in reading and role in reading:
                rest = {name: piece for name, piece in reading.items() if name not in (role, f"{role}_bias")}
                out.append(rest | {role + end: reading[other + end] for end in ("", "_bias") if other + end in reading})
    return distinct(out)
