"""Every way to read parameters as the feed-forward weights gate, up and down, the likeliest first."""

import itertools
import re
from collections.abc import Iterator, Sequence

import torch

from .parameters import Parameters, Piece, Pieces, Sizes, numel, with_bias

GATE_NAME = re.compile(r"gate", re.I)
UP_NAME = re.compile(r"(^|[._])(w_?)?up", re.I)
DOWN_NAME = re.compile(r"down|(^|[._])(w2|c_proj|w_?out|proj|fc2|lin2|linear2|dense_4h_to_h)([._]|$)", re.I)


def feed_forward_readings(found: Parameters, sizes: Sizes) -> Iterator[Pieces]:
    """Every assignment of gate, up and down, the likely ones first."""
    one = found.d_ff * sizes.d_model
    single = [name for name in found.feed_forward if numel(found.shapes[name]) == one]
    double = [name for name in found.feed_forward if numel(found.shapes[name]) == 2 * one]
    if double:
        for name in double:
            for down in single:
                yield from _fused_gate_up(name, down, found, sizes)
        return
    if len(single) < 2:
        return
    orders = list(itertools.permutations(single, min(len(single), 3)))
    first_axis = {name: found.shapes[name].index(sizes.d_model) for name in single}
    odd = [name for name in single if list(first_axis.values()).count(first_axis[name]) == 1]
    if len(single) == 3 and len(odd) == 1:
        orders = [order for order in orders if order[-1] == odd[0]]
    for order in sorted(orders, key=lambda order: _unlike_feed_forward(order)):
        *inner, down = order
        names = ("gate", "up") if len(inner) == 2 else ("up",)
        pieces: Pieces = {}
        for role, name in zip(names, inner, strict=False):
            piece = {role: Piece(found.names(name), first_axis[name])}
            pieces |= with_bias(piece, found.biases.get(name), found, {})
        output = {"down": Piece(found.names(down), first_axis[down], None, True)}
        reading = pieces | with_bias(output, found.biases.get(down), found, {})
        if all(_fits(reading[name], found, size) for name, size in _inner_biases(reading, found, sizes)):
            yield reading


def likely_feed_forward(readings: list[Pieces]) -> list[Pieces]:
    """The first reading, or the first two if no name tells gate from up."""
    names = " ".join(piece.parameters[0] for piece in readings[0].values())
    return readings[:1] if re.search(r"gate|up|1|fc", names) else readings[:2]


def _inner_biases(reading: Pieces, found: Parameters, sizes: Sizes) -> Iterator[tuple[str, int]]:
    """The biases in a reading, and the sizes that they must have."""
    for name, size in (("gate_bias", found.d_ff), ("up_bias", found.d_ff), ("down_bias", sizes.d_model)):
        if name in reading:
            yield name, size


def _fits(bias: Piece, found: Parameters, size: int) -> bool:
    held = sum(numel(found.shapes[name]) for name in bias.parameters) if bias.places is None else len(bias.places)
    return held == size


def _fused_gate_up(name: str, down: str, found: Parameters, sizes: Sizes) -> Iterator[Pieces]:
    axis = found.shapes[name].index(sizes.d_model)
    places = torch.arange(2 * found.d_ff)
    output = {"down": Piece(found.names(down), found.shapes[down].index(sizes.d_model), None, True)}
    output = with_bias(output, found.biases.get(down), found, {})
    for view in (places.view(2, -1), places.view(-1, 2).T):
        for roles in (("gate", "up"), ("up", "gate")):
            layout = {role: tuple(half.tolist()) for role, half in zip(roles, view, strict=True)}
            pieces = {role: Piece((name,), axis, layout[role]) for role in roles}
            yield output | with_bias(pieces, found.biases.get(name), found, dict(layout))


def _unlike_feed_forward(order: Sequence[str]) -> int:
    *inner, down = order
    wrong = 2 * (not DOWN_NAME.search(down)) + sum(bool(DOWN_NAME.search(name)) for name in inner)
    if len(inner) == 2:
        wrong += bool(GATE_NAME.search(inner[1])) + bool(UP_NAME.search(inner[0])) + (inner[0] > inner[1])
    return wrong
