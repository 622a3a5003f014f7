"""Rotary positions, with every choice that a specification has."""

import functools
from typing import Any

import torch
from torch import Tensor

from .spec import Number, Spec, along, are_several
from .variants import FREQUENCIES, TABLES, TURNS


def stream(spec: Spec, x: Tensor, positions: Tensor, head_dim: int) -> Tensor:
    """Rotate vectors of d_model."""
    if spec.rope_input_axis == "width":
        return rotated(spec, x, positions, x.shape[-1], spec.turn)
    parts = x.unflatten(-1, (-1, head_dim)).transpose(-3, -2)
    return rotated(spec, parts, positions[:, None], x.shape[-1], spec.turn).transpose(-3, -2).flatten(-2)


def _cos_sin(spec: Spec, x: Tensor, dim: int, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines in float64, for the first dim entries of vectors x."""
    numbers = (spec.theta, *spec.frequencies)
    if any(map(are_several, numbers)):
        return _table(spec.frequency, spec.tables, dim, width, positions, *(along(number, x) for number in numbers))
    places = positions.shape, tuple(positions.flatten().tolist())
    return _known_table(spec.frequency, spec.tables, dim, width, *places, *numbers)


@functools.lru_cache(maxsize=256)  # a search makes each table once
@torch.inference_mode(False)  # gradients are computed with some of them
def _known_table(
    frequency: str, tables: str, dim: int, width: int, shape: torch.Size, positions: tuple[int, ...], *numbers: Number
) -> tuple[Tensor, Tensor]:
    return _table(frequency, tables, dim, width, torch.tensor(positions).view(shape), *numbers)


def _table(
    frequency: str, tables: str, dim: int, width: int, positions: Tensor, theta: Any, *frequencies: Number
) -> tuple[Tensor, Tensor]:
    pair = torch.arange(dim // 2, dtype=torch.float64)
    of_pairs = FREQUENCIES[frequency](pair, dim, width, theta)
    if frequencies:
        given = [torch.as_tensor(number, dtype=torch.float64) for number in frequencies[: len(pair)]]
        of_pairs = torch.cat([torch.atleast_1d(number) for number in given], -1)
    cos, sin = TABLES[tables](positions[..., None].double(), of_pairs)
    return cos.double(), sin.double()


def rotated(spec: Spec, x: Tensor, positions: Tensor, width: int, turn: str = "rotation") -> Tensor:
    """Rotate the last axis of x; positions broadcast against x.shape[:-1] from the right. turn: a name of TURNS."""
    dim = int(x.shape[-1] * spec.rotary_fraction)
    cos, sin = (table.to(x.dtype) for table in _cos_sin(spec, x, dim, positions, width))
    turning, rest = x[..., :dim], x[..., dim:]
    first, second = (cos, sin), (cos, sin)  # of both members of a pair
    if spec.mixed:
        place = torch.arange(dim) // 2 if spec.pairing == "half" else torch.arange(dim) % (dim // 2)
        halves = place.chunk(2) if spec.pairing == "half" else (place[0::2], place[1::2])
        first, second = ((cos[..., half], sin[..., half]) for half in halves)
    a, b = (turning[..., 0::2], turning[..., 1::2]) if spec.pairing == "interleaved" else turning.chunk(2, -1)
    pair_of = TURNS[turn](a, b, first, second, spec.direction)
    turned = torch.stack(pair_of, -1).flatten(-2) if spec.pairing == "interleaved" else torch.cat(pair_of, -1)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
