"""A learner's parameters: what each may be by its shape and name, and how to read weights from them.

Sizes are chosen so that a shape tells what a parameter may be.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .spec import Weights

Raw = dict[str, Tensor]
"""The values of a learner's parameters, by their own names."""

NORM = re.compile(r"norm|(^|[._])(ln|rms)|(ln|rms)([._]|$)", re.I)
QUERY_KEY_NORM = re.compile(r"(^|[._])(q|k|query|key)_?(norm|layernorm|ln|rms)|norm_?(q|k)([._]|$)", re.I)

GATE = "attention_gate"
"""The projection whose sigmoid multiplies what attention gives."""
GATE_NAME = re.compile(r"gate|gating|(^|[._])(w?_?g|g_?proj|to_?g)([._]|$)", re.I)

OF_POSITIONS = re.compile(
    r"(^|[._])((abs|rel|relative)_?)?(pos|position|positional|pe)(_?(emb\w*|enc\w*|bias|table|weight))?([.]|_(?!f|mlp|wise)|$)",
    re.I,
)
"""Tables of positions, which may have the shape of a projection; a pos_ffn works position by position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The sizes that a block is built with. All products that occur as shapes differ."""

    d_model: int = 32
    num_heads: int = 4
    num_kv_heads: int = 4
    d_ff: int = 52

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.d_model // self.num_heads


@dataclass(frozen=True, slots=True)
class Piece:
    """One weight, read from one parameter, or from several that are stacked, such as one for each head.

    A matrix: the axis of size d_model goes last (as input) or first (as output), the others are flattened, and
    places picks among them. A vector: flattened, and places picks.
    """

    parameters: tuple[str, ...]
    axis: int | None = None
    places: tuple[int, ...] | None = None
    is_output: bool = False

    def read(self, raw: Raw) -> Tensor:
        """The matrix (out, in), or the vector."""
        tensors = [raw[name] for name in self.parameters]
        tensor = tensors[0] if len(tensors) == 1 else torch.stack(tensors)
        if self.axis is None:
            tensor = tensor.flatten()
            return tensor if self.places is None else tensor[list(self.places)]
        if self.is_output:
            tensor = tensor.movedim(self.axis, 0).flatten(1)
            return tensor if self.places is None else tensor[:, list(self.places)]
        tensor = tensor.movedim(self.axis, -1).flatten(0, -2)
        return tensor if self.places is None else tensor[list(self.places)]

    def write(self, raw: Raw, value: Tensor) -> None:
        """Change raw so that read returns value, and nothing else changes."""
        starts = itertools.accumulate((raw[name].numel() for name in self.parameters), initial=0)
        numbers = {
            name: torch.arange(raw[name].numel()).view_as(raw[name]) + start
            for name, start in zip(self.parameters, starts, strict=False)
        }
        flat = torch.cat([raw[name].flatten() for name in self.parameters])
        flat[self.read(numbers)] = value.to(flat.dtype)
        sizes = [raw[name].numel() for name in self.parameters]
        for name, part in zip(self.parameters, flat.split(sizes), strict=True):
            raw[name] = part.view_as(raw[name])

    @property
    def is_one_number(self) -> bool:
        """Whether it is one number for all dimensions."""
        return self.places == ONE_NUMBER


ONE_NUMBER = (0,)
Pieces = dict[str, Piece]


@dataclass(slots=True)
class Parameters:
    """A learner's parameters, sorted by what they may be."""

    attention: list[str] = field(default_factory=list)  # each entry may stand for several parameters
    feed_forward: list[str] = field(default_factory=list)
    norms: list[Piece] = field(default_factory=list)
    head_norms: list[str] = field(default_factory=list)
    biases: dict[str, str] = field(default_factory=dict)  # of the weight with that name
    unknown: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the parameters that an entry stands for
    d_ff: int = 0

    def names(self, entry: str) -> tuple[str, ...]:
        """The parameters that an entry stands for: usually itself."""
        return self.parts.get(entry, (entry,))


def weights(readings: Sequence[Pieces], raw: Raw) -> Weights:
    """The weights of several readings, stacked along a first axis. All readings have the same names."""
    stacked = {}
    for name in readings[0]:
        values = torch.stack([reading[name].read(raw) for reading in readings])
        stacked[name] = values[:, None] if values.dim() == 3 else values[:, None, None]
    return stacked


def distinct(readings: list[Pieces]) -> list[Pieces]:
    """The readings without duplicates."""
    return unique(readings, tuple(sorted({name for reading in readings for name in reading})))


def unique(readings: list[Pieces], names: tuple[str, ...]) -> list[Pieces]:
    """The readings without those that equal an earlier one in these names."""
    seen: dict[tuple[Any, ...], Pieces] = {}
    for reading in readings:
        seen.setdefault(tuple(reading.get(name) for name in names), reading)
    return list(seen.values())


def with_bias(pieces: Pieces, bias: str | None, found: Parameters, layout: dict[str, tuple[int, ...] | None]) -> Pieces:
    """Pieces with their biases. layout: the rows of each in a bias that they share."""
    if bias is None:
        return pieces
    return pieces | {f"{role}_bias": Piece(found.names(bias), None, layout.get(role)) for role in pieces}


def sort_parameters(listed: Sequence[dict[str, Any]], sizes: Sizes) -> Parameters:
    """Sort the driver's list of parameters by shape."""
    shapes = {one["name"]: tuple(one["shape"]) for one in listed if one["same_as"] == one["name"]}
    found = Parameters(shapes=shapes, d_ff=sizes.d_ff)
    vectors = [
        name for name, shape in shapes.items() if max(shape, default=0) == numel(shape) or _is_headed(shape, sizes)
    ]
    for weight in shapes:
        bias = next((name for name in _bias_names(weight) if name in vectors and name != weight), None)
        if bias is not None:
            found.biases[weight] = bias
    _bind_by_module(found, [name for name in vectors if name not in found.biases], sizes)
    taken = set(found.biases.values())
    whole = (sizes.d_model, sizes.num_kv_heads * sizes.head_dim)  # of all heads together
    for name, shape in shapes.items():
        if name in taken:
            continue
        if numel(shape) == 1 and NORM.search(name) and not _is_bias_name(name):
            found.norms.append(Piece((name,), None, ONE_NUMBER))
        elif name in vectors and numel(shape) in whole and QUERY_KEY_NORM.search(name):
            found.head_norms.append(name)
        elif name in vectors and numel(shape) == sizes.d_model and not _is_bias_name(name):
            found.norms.append(Piece((name,)))
        elif name in vectors and numel(shape) == 2 * sizes.d_model and not _is_bias_name(name):  # both in one
            found.norms += [Piece((name,), None, tuple(half.tolist())) for half in torch.arange(numel(shape)).chunk(2)]
        elif name in vectors:
            of_heads = numel(shape) == sizes.head_dim and not _is_bias_name(name)
            (found.head_norms if of_heads else found.unknown).append(name)
        elif numel(shape) == 2 * sizes.d_model and sizes.d_model in shape:  # both norms in one
            halves = torch.arange(2 * sizes.d_model).view(shape).movedim(shape.index(sizes.d_model), -1).flatten(0, -2)
            found.norms += [Piece((name,), None, tuple(half.tolist())) for half in halves]
        elif sizes.d_model not in shape or OF_POSITIONS.search(name):
            found.unknown.append(name)
        elif numel(shape) % (found.d_ff * sizes.d_model) == 0 and found.d_ff:
            found.feed_forward.append(name)
        else:
            found.attention.append(name)
    _set_aside_scales(found)
    _gather_parts(found, sizes)
    for name in list(found.attention):  # low-rank adapters, which have no effect at first
        gates_heads = numel(found.shapes[name]) == sizes.num_heads * sizes.d_model and GATE_NAME.search(name)
        size = sizes.head_dim * sizes.d_model
        if (numel(found.shapes[name]) % size and not gates_heads) or "lora" in name.lower():
            found.attention.remove(name)
            found.unknown.append(name)
    return found


def possible_d_ff(listed: Sequence[dict[str, Any]], sizes: Sizes) -> list[int]:
    """The possible widths of the feed-forward: d_ff, or what the learner's code computed from it."""
    others = [
        numel(one["shape"]) // sizes.d_model
        for one in listed
        if len(one["shape"]) == 2 and sizes.d_model in one["shape"] and one["same_as"] == one["name"]
    ]
    halved = [size for size in others if 2 * size in others]  # gate and up in one
    return [
        sizes.d_ff,
        *(
            size
            for size in dict.fromkeys(others)
            if size != sizes.d_model and (others.count(size) > 1 or size in halved)
        ),
    ]


def numel(shape: Sequence[int]) -> int:
    """The number of elements of a shape."""
    return int(torch.Size(shape).numel())


def _is_headed(shape: tuple[int, ...], sizes: Sizes) -> bool:
    """Whether the last axes are (heads, head_dim), as in a bias of one or three projections."""
    return sizes.d_model not in shape and shape[-2:] in (
        (sizes.num_heads, sizes.head_dim),
        (sizes.num_kv_heads, sizes.head_dim),
    )


def _bias_names(weight: str) -> Iterator[str]:
    folder, dot, last = weight.rpartition(".")
    for old, new in (("weight", "bias"), ("Weight", "Bias"), ("kernel", "bias"), ("w", "b"), ("W", "b"), ("W", "B")):
        if old in last:
            yield folder + dot + last.replace(old, new, 1)
    yield f"{folder}{dot}{last}_bias"
    yield f"{folder}{dot}b_{last}"
    yield f"{folder}{dot}{last}_b"
    yield f"{folder}{dot}{last}b"
    yield f"{folder}{dot}b{last}"


def _bind_by_module(found: Parameters, vectors: list[str], sizes: Sizes) -> None:
    """Treat the only vector of a module with one matrix as its bias, whatever its name, if the length fits.

    Of a module with two vectors of one size, the one that is called bias is that of the other.
    """
    owned: dict[str, list[str]] = {}
    for name in found.shapes:
        owned.setdefault(name.rpartition(".")[0], []).append(name)
    taken = set(found.biases.values())
    free = [name for name in vectors if name not in taken]
    wide = [name for name in free if numel(found.shapes[name]) == sizes.d_model]
    for names in owned.values():
        if len(names) != 2:
            continue
        weight, bias = sorted(names, key=_is_bias_name)
        alike = {*names} <= {*free} and found.shapes[weight] == found.shapes[bias]
        if alike and _is_bias_name(bias) and not _is_bias_name(weight):
            found.biases[weight] = bias
        if sum(name in free for name in names) != 1:
            continue
        matrix, vector = sorted(names, key=lambda name: name in free)
        shape = found.shapes[matrix]
        if len(shape) != 2 or sizes.d_model not in shape or numel(found.shapes[vector]) not in shape:
            continue
        if vector not in wide or len(wide) > 2:  # if there are at most two, they are the norms' weights
            found.biases[matrix] = vector


def _is_bias_name(name: str) -> bool:
    return "bias" in name.rpartition(".")[2].lower()


def _set_aside_scales(found: Parameters) -> None:
    """Vectors of a head's size are norms of queries and keys if named so, or if none is and they come in pairs.

    Others scale queries, or something else, and often by a function of their own, such as softplus.
    """
    named = [name for name in found.head_norms if NORM.search(name)]
    if named or len(found.head_norms) == 1:
        found.unknown += [name for name in found.head_norms if name not in named]
        found.head_norms = named


def _gather_parts(found: Parameters, sizes: Sizes) -> None:
    """Combine weights that are kept in several parameters, such as heads.0.key.weight, heads.1.key.weight."""
    groups: dict[str, list[str]] = {}
    for name in found.attention:
        groups.setdefault(re.sub(r"\d+", "#", name, count=1), []).append(name)
    wholes = {sizes.d_model**2, sizes.d_model * sizes.num_kv_heads * sizes.head_dim}
    inner = sizes.d_model * found.d_ff
    for pattern, names in groups.items():
        shape = found.shapes[names[0]]
        size = numel(shape) * len(names)
        alone = numel(shape) in wholes or size not in wholes | {inner}
        if len(names) < 2 or alone or any(found.shapes[name] != shape for name in names):
            continue
        names.sort(key=lambda name: int(next(iter(re.findall(r"\d+", name)), "0")))
        found.parts[pattern] = tuple(names)
        found.shapes[pattern] = (len(names), *shape)
        found.attention[:] = [name for name in found.attention if name not in names]
        (found.feed_forward if size == inner else found.attention).append(pattern)
        if all(name in found.biases for name in names):
            found.parts[pattern + " bias"] = tuple(found.biases[name] for name in names)
            found.biases[pattern] = pattern + " bias"
