"""Every way to read vectors as the weights and biases of norms, the likeliest first."""

import itertools
from collections.abc import Iterator

from .parameters import Parameters, Piece, Pieces, distinct

Norm = tuple[Piece, Piece | None]
"""A norm's weight, and its bias if it has one."""


def norm_readings(found: Parameters) -> Iterator[Pieces]:
    """Every assignment of norm1 and norm2, the order of the parameters first; both may share one weight."""
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
    """Every assignment of four norms, or of two norms and two scales, in which two follow the sublayers."""
    roles = ("norm1", "norm1_after", "norm2", "norm2_after")
    return [
        {name: piece for role, norm in zip(roles, order, strict=True) for name, piece in _as(role, norm).items()}
        for norms in _norms(found)
        if len(norms) == 4
        for order in itertools.permutations(norms)
    ]


def head_norm_readings(found: Parameters) -> Iterator[Pieces]:
    """Every assignment of q_norm and k_norm, if there are such weights."""
    if not found.head_norms:
        yield {}
    for norms in _paired([Piece((name,)) for name in found.head_norms], found):
        norms = norms[:2]
        for first, second in [*itertools.permutations(norms, 2), *([(norms[0], norms[0])] if len(norms) == 1 else [])]:
            yield _as("q_norm", first) | _as("k_norm", second)


def likely_norms(norms: list[Pieces]) -> list[Pieces]:
    """Two different weights in the order of the parameters, and one weight for both norms."""
    shared = [one for one in norms if set(one) >= {"norm1", "norm2"} and one["norm1"] == one["norm2"]]
    return distinct([*norms[:1], *shared[:2]]) if norms != [{}] else norms


def _as(role: str, norm: Norm) -> Pieces:
    weight, bias = norm
    return {role: weight} if bias is None else {role: weight, f"{role}_bias": bias}


def _norms(found: Parameters) -> list[list[Norm]]:
    """The norms over d_model: each list is one way to tell weights from biases."""
    return _paired(found.norms, found)


def _paired(vectors: list[Piece], found: Parameters) -> list[list[Norm]]:
    """Vectors as weights, or pairs in a module as weight and bias, whatever their names."""
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
