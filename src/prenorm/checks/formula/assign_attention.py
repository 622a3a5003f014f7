"""Every way to read parameters as the attention weights q, k, v and o, the likeliest first.

Nothing has to be renamed: names only sort the possibilities, and the numbers decide between them.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch

from .parameters import GATE, GATE_NAME, Parameters, Piece, Pieces, Sizes, distinct, numel, with_bias

ROLE_NAMES = {
    "q": re.compile(r"(^|[._])(w?_?q|q_?proj|quer(y|ies)|to_?q|wq|w_q)([._]|$|_?(w|weight|kernel|proj|lin\w*))", re.I),
    "k": re.compile(r"(^|[._])(w?_?k|k_?proj|keys?|to_?k|wk|w_k)([._]|$|_?(w|weight|kernel|proj|lin\w*))", re.I),
    "v": re.compile(r"(^|[._])(w?_?v|v_?proj|values?|to_?v|wv|w_v)([._]|$|_?(w|weight|kernel|proj|lin\w*))", re.I),
    "o": re.compile(
        r"(^|[._])(w?_?o|o_?proj|out\w*|to_?out|wo|w_o|c_proj|proj|dense)([._]|$|_?(w|weight|kernel|proj))", re.I
    ),
    GATE: GATE_NAME,
}
ROLES = ("q", "k", "v", "o", GATE)
OF_ONE_TOKEN = ("v", "o", GATE, "v_bias", "o_bias", f"{GATE}_bias")
"""What the output for a single token depends on."""


def attention_readings(found: Parameters, sizes: Sizes) -> Iterator[Pieces]:
    """Every assignment of q, k, v and o (and a gate) to the parameters of attention, the likely ones first."""
    entries = found.attention
    stacked = (4, sizes.d_model, sizes.d_model)
    if len(entries) == 1 and found.shapes[entries[0]] == stacked:
        yield from _stacked(entries[0], sizes)
        return
    four = [name for name in entries if name not in beyond_four(entries)]
    plain, gated = _readings(four, found, sizes, (4, 3)), _readings(entries, found, sizes, (5,))
    is_named = any(ROLE_NAMES[GATE].search(name) for name in entries)
    yield from itertools.chain(*((gated, plain) if is_named else (plain, gated)))


def beyond_four(entries: list[str]) -> list[str]:
    """Those that are no weights of attention if a block has more than it can have; telling names come first."""
    return sorted(entries, key=lambda name: not any(ROLE_NAMES[role].search(name) for role in "qkvo"))[4:]


def _readings(entries: list[str], found: Parameters, sizes: Sizes, counts: tuple[int, ...]) -> Iterator[Pieces]:
    """Those with so many weights."""
    rows = {"q": sizes.d_model, "k": sizes.num_kv_heads * sizes.head_dim}
    by_head = any(numel(found.shapes[name]) == sizes.num_heads * sizes.d_model for name in entries)
    rows |= {"v": rows["k"], "o": sizes.d_model, GATE: sizes.num_heads if by_head else sizes.d_model}
    for roles in sorted(_role_splits(entries, found, rows, sizes, counts), key=lambda roles: _unlike_names(roles)):
        options = [_entry_options(name, roles[name], found, rows, sizes) for name in entries]
        # q, k and v are either all (out, in) or all (in, out)
        for chosen in _alike(options):
            pieces: Pieces = {}
            for option in chosen:
                pieces |= option
            if {"q", "k", "v"} <= set(pieces):
                yield pieces


def readings_of_few(found: Parameters, sizes: Sizes) -> list[Pieces]:
    """Readings of two or three squares, the last of which is the output projection."""
    square, rows = sizes.d_model**2, dict.fromkeys(ROLES, sizes.d_model)
    if len(found.attention) not in (2, 3) or any(numel(found.shapes[name]) != square for name in found.attention):
        return []
    out: list[Pieces] = []
    for *inner, last in itertools.permutations(found.attention):
        names = {"q": inner[0], "k": inner[0], "v": inner[-1], "o": last}
        options = [_entry_options(name, (role,), found, rows, sizes) for role, name in names.items()]
        out += ({role: piece for pieces in chosen for role, piece in pieces.items()} for chosen in _alike(options))
    return out


def with_same_values(chosen: list[Pieces], attention: list[Pieces]) -> list[Pieces]:
    """The chosen readings, with every way to read queries and keys for the same values and outputs."""
    out = []
    for reading in chosen:
        key = tuple(reading.get(name) for name in OF_ONE_TOKEN)
        out += [reading | other for other in attention if tuple(other.get(name) for name in OF_ONE_TOKEN) == key]
    return distinct(out)


def by_queries_and_keys(readings: list[Pieces]) -> list[list[Pieces]]:
    """Readings grouped by the parameters that hold queries and keys."""
    groups: dict[frozenset[Any], list[Pieces]] = {}
    for reading in readings:
        held = frozenset((reading[role].parameters, frozenset(reading[role].places or ())) for role in ("q", "k"))
        groups.setdefault(held, []).append(reading)
    return list(groups.values())


def _stacked(name: str, sizes: Sizes) -> Iterator[Pieces]:
    """All four in one parameter (4, d_model, d_model)."""
    parts = [tuple(part.tolist()) for part in torch.arange(4 * sizes.d_model).chunk(4)]
    for order in itertools.permutations("qkvo"):
        place = dict(zip(order, parts, strict=True))
        for into, out in ((2, 1), (1, 2)):
            pieces = {role: Piece((name,), into, place[role]) for role in "qkv"}
            yield pieces | {"o": Piece((name,), out, place["o"], True)}


def _role_splits(
    entries: list[str], found: Parameters, rows: dict[str, int], sizes: Sizes, counts: tuple[int, ...]
) -> Iterator[dict[str, tuple[str, ...]]]:
    """Each entry's roles, in the order in which it contains them."""
    for order in itertools.permutations(ROLES[: max(counts)]):
        for count in counts:
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
    """A penalty for roles that contradict the names, and for unusual orders."""
    wrong = 0
    for name, held in roles.items():
        if len(held) == 1:
            said = [role for role, pattern in ROLE_NAMES.items() if pattern.search(name)]
            wrong += 2 * (bool(said) and held[0] not in said)
        else:
            wrong += held not in (("q", "k", "v"), ("k", "v"), ("q", "k"), ("q", GATE), ("q", "k", "v", GATE))
    flat = [role for held in roles.values() for role in held]
    return 10 * wrong + sum(a > b for a, b in itertools.combinations([ROLES.index(role) for role in flat], 2))


def _entry_options(
    name: str, roles: tuple[str, ...], found: Parameters, rows: dict[str, int], sizes: Sizes
) -> list[Pieces]:
    shape = found.shapes[name]
    axes = [axis for axis, size in enumerate(shape) if size == sizes.d_model]
    bias = found.biases.get(name)
    if roles == ("o",):
        return [
            with_bias({"o": Piece(found.names(name), axis, _output_places(shape, axis, sizes), True)}, bias, found, {})
            for axis in axes
        ]
    options = []
    for axis in reversed(axes):  # (out, in) first, as in nn.Linear
        for layout in _layouts(roles, shape, axis, rows, sizes):
            pieces = {role: Piece(found.names(name), axis, layout[role]) for role in roles}
            options.append(with_bias(pieces, bias, found, layout))
    return options


def _output_places(shape: tuple[int, ...], axis: int, sizes: Sizes) -> tuple[int, ...] | None:
    """The columns of an output projection; all heads share one that is as wide as one head."""
    if numel(shape) == sizes.head_dim * sizes.d_model:
        return tuple(range(sizes.head_dim)) * sizes.num_heads
    return _undo_dims_first(shape, axis, sizes)


def _undo_dims_first(shape: tuple[int, ...], axis: int, sizes: Sizes) -> tuple[int, ...] | None:
    """The order that turns (head_dim, heads) into (heads, head_dim), for a weight with separate axes."""
    rest = shape[:axis] + shape[axis + 1 :]
    if rest == (sizes.head_dim, sizes.num_heads) or rest == (sizes.head_dim, sizes.num_kv_heads):
        return tuple(torch.arange(numel(rest)).view(rest).T.flatten().tolist())
    return None


def _layouts(
    roles: tuple[str, ...], shape: tuple[int, ...], axis: int, rows: dict[str, int], sizes: Sizes
) -> Iterator[dict[str, tuple[int, ...] | None]]:
    """The rows of each role among the flattened other axes."""
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
