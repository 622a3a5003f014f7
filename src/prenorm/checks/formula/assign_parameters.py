"""Which parameter is which: every way to read a learner's parameters as the block's weights, the likely ones first.

Nothing has to be renamed. Names only sort the possibilities, and the numbers decide between them.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .parameters import Parameters, Piece, Pieces, Sizes, numel

# --- attention -------------------------------------------------------------------------------------------------------

ROLE_NAMES = {
    "q": re.compile(r"(^|[._])(w?_?q|q_?proj|quer(y|ies)|to_?q|wq|w_q)([._]|$|_?(w|weight|kernel|proj|lin\w*))", re.I),
    "k": re.compile(r"(^|[._])(w?_?k|k_?proj|keys?|to_?k|wk|w_k)([._]|$|_?(w|weight|kernel|proj|lin\w*))", re.I),
    "v": re.compile(r"(^|[._])(w?_?v|v_?proj|values?|to_?v|wv|w_v)([._]|$|_?(w|weight|kernel|proj|lin\w*))", re.I),
    "o": re.compile(
        r"(^|[._])(w?_?o|o_?proj|out\w*|to_?out|wo|w_o|c_proj|proj|dense)([._]|$|_?(w|weight|kernel|proj))", re.I
    ),
}


def attention_readings(found: Parameters, sizes: Sizes) -> Iterator[Pieces]:
    """Every assignment of q, k, v and o to the parameters of attention, the likely ones first."""
    entries = found.attention
    stacked = (4, sizes.d_model, sizes.d_model)
    if len(entries) == 1 and found.shapes[entries[0]] == stacked:
        yield from _stacked(entries[0], sizes)
        return
    if len(entries) > 4:  # something else is among them; those whose names speak come first
        entries = sorted(entries, key=lambda name: not any(p.search(name) for p in ROLE_NAMES.values()))[:4]
    rows = {"q": sizes.d_model, "k": sizes.num_kv_heads * sizes.head_dim}
    rows |= {"v": rows["k"], "o": sizes.d_model}
    for roles in sorted(_role_splits(entries, found, rows, sizes), key=lambda roles: _unlike_names(roles)):
        options = [_entry_options(name, roles[name], found, rows, sizes) for name in entries]
        # the four ways to lay out a square go together: all inputs alike
        for chosen in _alike(options):
            pieces: Pieces = {}
            for option in chosen:
                pieces |= option
            if {"q", "k", "v"} <= set(pieces):
                yield pieces


def _stacked(name: str, sizes: Sizes) -> Iterator[Pieces]:
    """All four in one parameter (4, d_model, d_model)."""
    parts = [tuple(part.tolist()) for part in torch.arange(4 * sizes.d_model).chunk(4)]
    for order in itertools.permutations("qkvo"):
        place = dict(zip(order, parts, strict=True))
        for into, out in ((2, 1), (1, 2)):
            pieces = {role: Piece((name,), into, place[role]) for role in "qkv"}
            yield pieces | {"o": Piece((name,), out, place["o"], True)}


def _role_splits(
    entries: list[str], found: Parameters, rows: dict[str, int], sizes: Sizes
) -> Iterator[dict[str, tuple[str, ...]]]:
    """Each entry's roles, in the order in which it holds them."""
    for order in itertools.permutations("qkvo"):
        for count in (4, 3):
            if count == 3 and order[3] != "o":
                continue
            roles: dict[str, tuple[str, ...]] = {}
            rest = list(order[:count])
            for name in entries:
                wanted = numel(found.shapes[name]) // sizes.d_model
                taken: list[str] = []
                while rest and sum(rows[role] for role in taken) < wanted:
                    taken.append(rest.pop(0))
                one_head = taken == ["o"] and wanted == sizes.head_dim
                if (sum(rows[role] for role in taken) != wanted and not one_head) or ("o" in taken and len(taken) > 1):
                    break
                roles[name] = tuple(taken)
            else:
                if not rest:
                    yield roles


def _unlike_names(roles: dict[str, tuple[str, ...]]) -> int:
    """How many roles contradict what the names say, and how many orders are unusual."""
    wrong = 0
    for name, held in roles.items():
        if len(held) == 1:
            said = [role for role, pattern in ROLE_NAMES.items() if pattern.search(name)]
            wrong += 2 * (bool(said) and held[0] not in said)
        else:
            wrong += held not in (("q", "k", "v"), ("k", "v"), ("q", "k"))
    flat = [role for held in roles.values() for role in held]
    return 10 * wrong + sum(a > b for a, b in itertools.combinations([("qkvo").index(role) for role in flat], 2))


def _entry_options(
    name: str, roles: tuple[str, ...], found: Parameters, rows: dict[str, int], sizes: Sizes
) -> list[Pieces]:
    shape = found.shapes[name]
    axes = [axis for axis, size in enumerate(shape) if size == sizes.d_model]
    bias = found.biases.get(name)
    if roles == ("o",):
        return [
            _with_bias({"o": Piece(found.names(name), axis, _output_places(shape, axis, sizes), True)}, bias, found, {})
            for axis in axes
        ]
    options = []
    for axis in reversed(axes):  # (out, in) first, as in nn.Linear
        for layout in _layouts(roles, shape, axis, rows, sizes):
            pieces = {role: Piece(found.names(name), axis, layout[role]) for role in roles}
            options.append(_with_bias(pieces, bias, found, layout))
    return options


def _with_bias(
    pieces: Pieces, bias: str | None, found: Parameters, layout: dict[str, tuple[int, ...] | None]
) -> Pieces:
    if bias is None:
        return pieces
    return pieces | {f"{role}_bias": Piece(found.names(bias), None, layout.get(role)) for role in pieces}


def _output_places(shape: tuple[int, ...], axis: int, sizes: Sizes) -> tuple[int, ...] | None:
    """The columns of an output projection; one that is as wide as one head is the same for all of them."""
    if numel(shape) == sizes.head_dim * sizes.d_model:
        return tuple(range(sizes.head_dim)) * sizes.num_heads
    return _undo_dims_first(shape, axis, sizes)


def _undo_dims_first(shape: tuple[int, ...], axis: int, sizes: Sizes) -> tuple[int, ...] | None:
    """The order that brings (head_dim, heads) to (heads, head_dim), for a weight that keeps both axes apart."""
    rest = shape[:axis] + shape[axis + 1 :]
    if rest == (sizes.head_dim, sizes.num_heads) or rest == (sizes.head_dim, sizes.num_kv_heads):
        return tuple(torch.arange(numel(rest)).view(rest).T.flatten().tolist())
    return None


def _layouts(
    roles: tuple[str, ...], shape: tuple[int, ...], axis: int, rows: dict[str, int], sizes: Sizes
) -> Iterator[dict[str, tuple[int, ...] | None]]:
    """Where, among the flattened other axes, each role's rows lie."""
    if len(roles) == 1:
        yield {roles[0]: _undo_dims_first(shape, axis, sizes)}
        return
    total = sum(rows[role] for role in roles)
    places = torch.arange(total)
    parts = places.split([rows[role] for role in roles])
    yield {role: tuple(part.tolist()) for role, part in zip(roles, parts, strict=True)}  # one after the other
    count = len(roles)
    if len({rows[role] for role in roles}) == 1:
        heads = rows[roles[0]] // sizes.head_dim
        by_head = places.view(heads, count, sizes.head_dim)
        yield {role: tuple(by_head[:, i].flatten().tolist()) for i, role in enumerate(roles)}
        innermost = places.view(heads, sizes.head_dim, count)
        yield {role: tuple(innermost[..., i].flatten().tolist()) for i, role in enumerate(roles)}
    elif set(roles) == {"q", "k", "v"}:  # each key-value head beside the query heads that read it
        group = sizes.num_heads // sizes.num_kv_heads
        grouped = places.view(sizes.num_kv_heads, group + 2, sizes.head_dim)
        slots = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, None)}
        yield {role: tuple(grouped[:, slots[role]].flatten().tolist()) for role in roles}


def _alike(options: list[list[Pieces]]) -> Iterator[tuple[Pieces, ...]]:
    """Combinations in which separate squares of q, k and v have the same orientation."""
    for chosen in itertools.product(*options):
        axes = {
            (piece.axis == 0)
            for pieces in chosen
            for name, piece in pieces.items()
            if name in "qkv" and piece.axis is not None and len(pieces) <= 2
        }
        if len(axes) <= 1:
            yield chosen


# --- feed-forward ----------------------------------------------------------------------------------------------------

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
            pieces |= _with_bias(piece, found.biases.get(name), found, {})
        output = {"down": Piece(found.names(down), first_axis[down], None, True)}
        reading = pieces | _with_bias(output, found.biases.get(down), found, {})
        if all(_fits(reading[name], found, size) for name, size in _inner_biases(reading, found, sizes)):
            yield reading


def _inner_biases(reading: Pieces, found: Parameters, sizes: Sizes) -> Iterator[tuple[str, int]]:
    """The biases in a reading of the feed-forward, and the sizes that they must have."""
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
    output = _with_bias(output, found.biases.get(down), found, {})
    for view in (places.view(2, -1), places.view(-1, 2).T):
        for roles in (("gate", "up"), ("up", "gate")):
            layout = {role: tuple(half.tolist()) for role, half in zip(roles, view, strict=True)}
            pieces = {role: Piece((name,), axis, layout[role]) for role in roles}
            yield output | _with_bias(pieces, found.biases.get(name), found, dict(layout))


def _unlike_feed_forward(order: Sequence[str]) -> int:
    *inner, down = order
    wrong = 2 * (not DOWN_NAME.search(down)) + sum(bool(DOWN_NAME.search(name)) for name in inner)
    if len(inner) == 2:
        wrong += bool(GATE_NAME.search(inner[1])) + bool(UP_NAME.search(inner[0])) + (inner[0] > inner[1])
    return wrong


# --- norms -----------------------------------------------------------------------------------------------------------


def norm_readings(found: Parameters) -> Iterator[Pieces]:
    """Every assignment of norm1 and norm2, in the order of the parameters first; a single one may serve both."""
    for norms in _norms(found):
        norms = norms[:4]
        for first, second in itertools.permutations(norms, 2):
            yield _as("norm1", first) | _as("norm2", second)
        for norm in norms:
            yield _as("norm1", norm) | _as("norm2", norm)
        if len(norms) == 1:
            yield _as("norm1", norms[0])
            yield _as("norm2", norms[0])
    if not found.norms:
        yield {}


def norms_around(found: Parameters) -> list[Pieces]:
    """Four norms, two of which stand behind the sublayers; in the order of the parameters first."""
    roles = ("norm1", "norm1_after", "norm2", "norm2_after")
    return [
        {name: piece for role, norm in zip(roles, order, strict=True) for name, piece in _as(role, norm).items()}
        for norms in _norms(found)
        if len(norms) == 4
        for order in itertools.permutations(norms)
    ]


def head_norm_readings(found: Parameters) -> Iterator[Pieces]:
    """q_norm and k_norm over head_dim, where there are such weights."""
    if not found.head_norms:
        yield {}
    for norms in _paired([Piece((name,)) for name in found.head_norms], found):
        norms = norms[:2]
        for first, second in [*itertools.permutations(norms, 2), *([(norms[0], norms[0])] if len(norms) == 1 else [])]:
            yield _as("q_norm", first) | _as("k_norm", second)


Norm = tuple[Piece, Piece | None]
"""A norm's weight, and its bias where it has one."""


def _as(role: str, norm: Norm) -> Pieces:
    weight, bias = norm
    return {role: weight} if bias is None else {role: weight, f"{role}_bias": bias}


def _norms(found: Parameters) -> list[list[Norm]]:
    """The norms over d_model: each list is one way to tell weights from biases."""
    return _paired(found.norms, found)


def _paired(vectors: list[Piece], found: Parameters) -> list[list[Norm]]:
    """Vectors as weights, or two of each module as its weight and its bias, whatever they are called."""
    plain = [(one, _named_bias(one, found)) for one in vectors]
    if any(bias is not None or one.places is not None for one, bias in plain):
        return [plain]
    by_owner: dict[str, list[Piece]] = {}
    for one in vectors:
        by_owner.setdefault(one.parameters[0].rpartition(".")[0], []).append(one)
    groups = list(by_owner.values())
    if len(groups) > 1 and all(len(group) == 2 for group in groups):
        return [*_both_ways([(a, b) for a, b in groups]), plain]
    if len(groups) == 1 and len(vectors) == 2:
        return [plain, *_both_ways([(vectors[0], vectors[1])])]
    if len(groups) == 1 and len(vectors) == 4:
        a, b, c, d = vectors
        return [*_both_ways([(a, b), (c, d)]), *_both_ways([(a, c), (b, d)]), plain]
    return [plain]


def _both_ways(pairs: list[tuple[Piece, Piece]]) -> list[list[Norm]]:
    return [[(a, b) for a, b in pairs], [(b, a) for a, b in pairs]]


def _named_bias(norm: Piece, found: Parameters) -> Piece | None:
    bias = found.biases.get(norm.parameters[0])
    return None if bias is None else Piece(found.names(bias), None, norm.places)


# --- lists of readings ------------------------------------------------------------------------------------------------


def likely_feed_forward(readings: list[Pieces]) -> list[Pieces]:
    """The first, or where no name tells gate from up, the first two."""
    names = " ".join(piece.parameters[0] for piece in readings[0].values())
    return readings[:1] if re.search(r"gate|up|1|fc", names) else readings[:2]


def likely_norms(norms: list[Pieces]) -> list[Pieces]:
    """The first two different weights in their order, and one weight for both."""
    shared = [one for one in norms if set(one) >= {"norm1", "norm2"} and one["norm1"] == one["norm2"]]
    return distinct([*norms[:1], *shared[:2]]) if norms != [{}] else norms


def unique(readings: list[Pieces], names: tuple[str, ...]) -> list[Pieces]:
    """The first of those that are alike in these names."""
    seen: dict[tuple[Any, ...], Pieces] = {}
    for reading in readings:
        seen.setdefault(tuple(reading.get(name) for name in names), reading)
    return list(seen.values())


def distinct(readings: list[Pieces]) -> list[Pieces]:
    """The first of those that are alike."""
    return unique(readings, tuple(sorted({name for reading in readings for name in reading})))


def with_same_values(chosen: list[Pieces], attention: list[Pieces]) -> list[Pieces]:
    """The readings that were chosen, with every way to read queries and keys beside their values and outputs."""
    names = ("v", "o", "v_bias", "o_bias")
    out = []
    for reading in chosen:
        key = tuple(reading.get(name) for name in names)
        out += [reading | other for other in attention if tuple(other.get(name) for name in names) == key]
    return distinct(out)


def by_queries_and_keys(readings: list[Pieces]) -> list[list[Pieces]]:
    """Readings grouped by the parameters that are zero when queries and keys are."""
    groups: dict[frozenset[Any], list[Pieces]] = {}
    for reading in readings:
        held = frozenset((reading[role].parameters, frozenset(reading[role].places or ())) for role in ("q", "k"))
        groups.setdefault(held, []).append(reading)
    return list(groups.values())
