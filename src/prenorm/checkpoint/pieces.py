"""Tensors in pieces: the names of pieces in safetensors files, and any part of a tensor read from such files.

A piece is named by its place: `lm_head.weight[500:1000 of 1000, 0:64 of 64]` has the rows 500 to 999 of a matrix with
1000 rows, and all of its 64 columns. A tensor that is stored whole has its plain name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import listed, name_text
from .header import DTYPES, Header, read_header
from .tensors import Box, read_boxes

Region = tuple[tuple[int, int], ...]  # of a tensor, for each of its axes: the first index, and the one after the last

_AXIS = r"\d{1,18}:\d{1,18} of \d{1,18}"
_PIECE = re.compile(rf"(.+)\[({_AXIS}(?:, {_AXIS})*)\]", re.DOTALL)

MAX_CELLS = 10_000_000  # of the grid that the ends of a tensor's pieces make; thousands of processes make thousands


def whole(shape: Sequence[int]) -> Region:
    """All of a tensor."""
    return tuple((0, size) for size in shape)


def shape_of(region: Region) -> tuple[int, ...]:
    """The shape of a part of a tensor."""
    return tuple(end - begin for begin, end in region)


def piece_name(name: str, region: Region, shape: Sequence[int]) -> str:
    """The name in a file for the part `region` of a tensor of this shape; for all of it, its own."""
    if region == whole(shape):
        return name
    axes = (f"{begin}:{end} of {size}" for (begin, end), size in zip(region, shape, strict=True))
    return f"{name}[{', '.join(axes)}]"


def check_names(names: Iterable[str]) -> None:
    """Raise CheckpointError for tensors whose own names end as those of pieces do."""
    if wrong := [name for name in names if _PIECE.fullmatch(name)]:
        raise CheckpointError(f"a tensor's name may not end in a place, as {listed(wrong, 5)} does; rename it.")


def are_all(regions: Sequence[Region], shape: Sequence[int]) -> bool:
    """Whether these parts of a tensor are together all of it, and no number is in two of them."""
    if list(regions) == [whole(shape)]:
        return True
    # The ends of all parts cut the tensor into a grid of cells.
    cuts = [sorted({0, size, *(end for one in regions for end in one[axis])}) for axis, size in enumerate(shape)]
    if any(cut[-1] > size for cut, size in zip(cuts, shape, strict=True)):
        return False
    if np.prod([len(cut) for cut in cuts], dtype=float) > MAX_CELLS:
        return False
    places = [{end: place for place, end in enumerate(cut)} for cut in cuts]
    times = np.zeros([len(cut) - 1 for cut in cuts], np.int32)
    for region in regions:
        times[tuple(slice(place[begin], place[end]) for place, (begin, end) in zip(places, region, strict=True))] += 1
    return bool((times == 1).all())


class _Piece(NamedTuple):
    path: Path
    name: str  # in the file
    region: Region


class StoredTensors:
    """The tensors that some files hold together, whole or in pieces. Only headers are read at first.

    Raises CheckpointError for files that do not hold every number of each tensor, or hold one twice.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._headers: dict[Path, Header] = {path: read_header(path) for path in paths}
        self._pieces: dict[str, list[_Piece]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for path, header in self._headers.items():
            for name in header.tensors:
                self._add(path, header, name)
        broken = [name for name, shape in self.shapes.items() if not are_all(self._regions(name), shape)]
        if broken:
            files = ", ".join(map(str, self._headers))
            raise CheckpointError(
                f"{files}: the pieces of a tensor must be together all of it, and no two may overlap, but those of "
                f"{listed(broken, 5)} are not."
            )

    def _add(self, path: Path, header: Header, stored: str) -> None:
        info = header.tensors[stored]
        name, region, shape = stored, whole(info.shape), info.shape
        if match := _PIECE.fullmatch(stored):
            axes = [[int(number) for number in re.findall(r"\d+", axis)] for axis in match[2].split(", ")]
            name, region = match[1], tuple((begin, end) for begin, end, _ in axes)
            shape = tuple(size for _, _, size in axes)
            if shape_of(region) != info.shape:
                raise CheckpointError(f"{path}: {name_text(stored)} has another shape, {info.shape}.")
        if info.dtype not in DTYPES:
            raise CheckpointError(
                f"{path} holds tensors of dtype {name_text(info.dtype)}; known are {', '.join(DTYPES)}."
            )
        if (self.shapes.setdefault(name, shape), self._dtypes.setdefault(name, info.dtype)) != (shape, info.dtype):
            raise CheckpointError(f"{path}: {name_text(stored)} is of another shape or dtype than pieces before it.")
        self._pieces.setdefault(name, []).append(_Piece(path, stored, region))

    def _regions(self, name: str) -> list[Region]:
        return [piece.region for piece in self._pieces[name]]

    def read(self, wanted: Mapping[str, Region]) -> dict[str, Tensor]:
        """These parts of these tensors, bit for bit, on the CPU. Raises CheckpointError where one does not fit."""
        tensors = {name: self._empty(name, region) for name, region in wanted.items()}
        boxes: dict[Path, list[Box]] = {}
        for name, region in wanted.items():
            for piece in self._pieces[name]:
                if (box := _box(piece, region, tensors[name])) is not None:
                    boxes.setdefault(piece.path, []).append(box)
        for path, wanted_here in boxes.items():
            read_boxes(path, wanted_here, self._headers[path])
        return tensors

    def _empty(self, name: str, region: Region) -> Tensor:
        try:
            return torch.empty(shape_of(region), dtype=DTYPES[self._dtypes[name]])
        except RuntimeError as error:
            raise CheckpointError(f"{name_text(name)} does not fit into memory: {error}.") from error


def _box(piece: _Piece, region: Region, tensor: Tensor) -> Box | None:
    """What a piece has of the part of a tensor that is wanted, and where that goes; None where it has nothing."""
    pairs = list(zip(region, piece.region, strict=True))
    shared = [(max(one[0], other[0]), min(one[1], other[1])) for one, other in pairs]
    if any(begin >= end for begin, end in shared):
        return None
    begins = tuple(begin - other[0] for (begin, _), (_, other) in zip(shared, pairs, strict=True))
    within = tuple(slice(begin - one[0], end - one[0]) for (begin, end), (one, _) in zip(shared, pairs, strict=True))
    return Box(piece.name, begins, tensor[within])
