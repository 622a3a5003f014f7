"""The third step, several tokens: queries and keys, their rotation, scale and softmax."""

import dataclasses

import torch

from ..parameters import Pieces, Raw, weights
from ..reading import head_norm_readings
from ..reference import block
from .attempt import TOKENS, Attempt
from .explanation import Explanation, UnexplainedError
from .switches import SCORES
from .trials import Base, Match, Probe, agrees

LOUD = 0.01
"""Of the largest output: what the sign of all queries has to change."""
ROTATIONS = (("interleaved", 1), ("half", 1), ("interleaved", -1), ("half", -1))
"""Pairing and direction."""


def scores(attempt: Attempt, bases: list[Base], readings: list[Pieces]) -> Explanation:
    """The simplest explanation, from the specs and readings that the second step left."""
    probe = attempt.probe(_louder(attempt, readings[0]), TOKENS)
    head_norms = list(head_norm_readings(attempt.found))
    kinds = _kinds_of_head_norms(attempt)
    if head_norms != [{}] and bases[0][0].weight1 == bases[0][0].weight2 == "none":  # of one class with these
        head_norms.append({})
    readings = [reading | norms for norms in head_norms for reading in readings]
    turned = any("v" in spec.rope_on or spec.rope_input != "no" for spec, _ in bases)
    least = min(cost for _, cost in bases)
    simplest, others = [one for one in bases if one[1] == least], [one for one in bases if one[1] > least]
    matches: list[Match] = []
    for specs, switches, most in (
        (simplest, SCORES, 1),
        (others, [], 0),
        (_with_other_tables(simplest), [], 0),
        (_with_other_factors(simplest), [], 0),
        (others if attempt.most > 1 else [], SCORES, 1),
        (simplest if attempt.most > 1 else [], SCORES, 2),
    ):
        if most == 2 and _only_distances_count(attempt, bases, readings):
            evidence = "at equal positions all is right, and only distances count, by other angles"
            raise UnexplainedError("several tokens: the rotation", faults=[("rope_wrong_frequency", evidence)])
        every = [(dataclasses.replace(spec, qk_norm=kind), cost) for spec, cost in specs for kind in kinds[: 4 - most]]
        if not turned:
            every = [
                (dataclasses.replace(spec, pairing=pairing, direction=direction), cost)
                for pairing, direction in ROTATIONS
                for spec, cost in every
            ]
        matches = attempt.trials.find(every, switches, readings, probe, most=most)
        if matches:
            break
    else:
        raise UnexplainedError("several tokens: queries and keys, their rotation, scale and softmax")
    least = min(cost for _, cost, _ in matches)
    explanations = [Explanation(spec, readings[at[0]], cost) for spec, cost, at in matches if cost == least]
    return _nearest(attempt, explanations, probe)


def _kinds_of_head_norms(attempt: Attempt) -> list[str]:
    """Where queries and keys may be normalised, the likeliest first."""
    held = attempt.found.head_norms
    if not held:
        return ["none", "before_rope", "after_rope"]
    if attempt.found.shapes[held[0]] == (attempt.sizes.d_model,):
        return ["whole", "none"]
    return ["before_rope", "after_rope", "none"]


def _nearest(attempt: Attempt, explanations: list[Explanation], probe: Probe) -> Explanation:
    """The first of those that come as near as the nearest: where outputs hardly depend on scores, many fit."""
    with torch.no_grad():
        given = [one.forward(probe.raw, probe.x, probe.positions, attempt.sizes.num_heads) for one in explanations]
    gaps = [float((y - probe.y).abs().nan_to_num().max()) for y in given]
    near = 2 * min(gaps) + 1e-9
    return next(one for one, gap in zip(explanations, gaps, strict=True) if gap <= near)


def _louder(attempt: Attempt, reading: Pieces) -> Raw:
    """The parameters, with queries so large that outputs depend on them: a wrong norm may make them tiny."""
    x = attempt.probe(attempt.raw, TOKENS).x
    for power in range(5):
        loud, turned = dict(attempt.raw), dict(attempt.raw)
        queries = reading["q"].read(attempt.raw) * 10.0**power
        reading["q"].write(loud, queries)
        reading["q"].write(turned, -queries)
        y = attempt.built.run(loud, x).y
        if not (y - attempt.built.run(turned, x).y).abs().max() < LOUD * y.abs().max():
            return loud
    return attempt.raw


def _only_distances_count(attempt: Attempt, bases: list[Base], readings: list[Pieces]) -> bool:
    """Whether all is right at one and the same position, and elsewhere only distances count: a rotation it is."""
    if attempt.built.positions_name is None:
        return False
    x = attempt.probe(attempt.raw, TOKENS).x
    zero, near, far = (torch.arange(TOKENS) * spread + start for spread, start in ((0, 0), (1, 0), (1, 5)))
    at_zero, at_near, at_far = (attempt.built.run(attempt.raw, x, positions=at).y for at in (zero, near, far))
    expected = block(bases[0][0], weights(readings[:1], attempt.raw), x, zero[None], attempt.sizes.num_heads)
    return agrees(at_zero, expected[0], x, attempt.tolerance) and agrees(at_near, at_far, x, attempt.tolerance)


def _with_other_tables(bases: list[Base]) -> list[Base]:
    """Bases with another theta, or with a part of each head turned only."""
    return [
        (dataclasses.replace(spec, theta=theta, rotary_fraction=fraction), cost)
        for spec, cost in bases
        for theta in (10000.0, 500000.0, 1e6, 1000.0, 100.0)
        for fraction in (1.0, 0.5, 0.25, 0.75)
        if (theta, fraction) != (10000.0, 1.0)
    ]


def _with_other_factors(bases: list[Base]) -> list[Base]:
    """Bases with scores of other sizes: powers of 2, up and down, and their roots."""
    return [
        (dataclasses.replace(spec, factor=2.0 ** (power / 4)), cost + 1)
        for spec, cost in bases
        for power in range(-24, 25)
        if power
    ]
