"""The third step, several tokens: queries and keys, their rotation, scale and softmax."""

import dataclasses
import itertools

import torch

from ..formula.assign_norms import head_norm_readings
from ..formula.parameters import Pieces, Raw, weights
from ..formula.reference import block
from ..subject.learner import USUAL
from .attempt import Attempt
from .explanation import Explanation, UnexplainedError
from .fitting import FACTOR, PAIR, SOFTCAP, THETA, USUAL_THETA, fitted
from .switches import ONE_SIDED, SCORES, Switch, in_pairs
from .trials import Base, Match, Probe, agrees

LOUD = 0.01
"""How much negating all queries must change, relative to the largest output."""
LAYER_NORM_EPS = 1e-5  # of torch.nn.LayerNorm; norms of queries and keys often keep it, whatever eps the block has
SWITCHES_OF_SCORES = [one for one in SCORES if not {"frequency", "tables"} & one.keys() and one.get("rope_on") != ""]
"""Those that leave the frequencies to theta."""
OTHER_SCALES: list[Switch] = [{"scale": scale} for scale in ("1", "1/head_dim")]
LIKELY_SWITCHES: list[Switch] = [
    *({"rope_on": on} for on in ("q", "k")),
    {"turn": "both sines with one sign"},
    *({"softmax": axis} for axis in ("queries", "heads")),
]
"""Those that leave the scale of scores to a factor."""
SWITCHES_BESIDE_FREQUENCIES: list[Switch] = [*LIKELY_SWITCHES, *({"scale": scale} for scale in ("1", "1/head_dim"))]
"""Those that are tried where each pair has a frequency of its own."""
FAR = 5  # positions from the start
ROTATIONS = (("interleaved", 1), ("half", 1), ("interleaved", -1), ("half", -1))
"""Pairing and direction."""


def scores(attempt: Attempt, bases: list[Base], readings: list[Pieces]) -> Explanation:
    """The simplest explanation, from the specs and readings that the second step left."""
    probe = attempt.probe(_louder(attempt, readings[0]))
    head_norms = list(head_norm_readings(attempt.found))
    kinds = kinds_of_head_norms(attempt, bases[0][0].norm1)
    if head_norms != [{}] and bases[0][0].weight1 == bases[0][0].weight2 == "none":  # of one class with these
        head_norms.append({})
    readings = [reading | norms for norms in head_norms for reading in readings]
    turned = any("v" in spec.rope_on or spec.rope_input != "no" for spec, _ in bases)
    least = min(cost for _, cost in bases)
    simplest, others = [one for one in bases if one[1] == least], [one for one in bases if one[1] > least]
    unrotated = _with_a_switch(simplest[:1], [{"rope_on": ""}])  # otherwise frequencies of zero would be found
    matches: list[Match] = []
    every: list[Base] = []
    for specs, switches, most, fit in (
        (simplest, [], 0, None),
        (simplest, [], 0, USUAL_THETA),
        (simplest, SCORES, 1, None),
        (others, [], 0, None),
        (_with_parts(simplest), [], 0, None),
        (_with_parts(simplest), SCORES, 1, None),
        (simplest + _with_parts(simplest), [], 0, THETA),
        (simplest, [], 0, SOFTCAP),
        (simplest, ONE_SIDED, 1, None),
        (simplest, [], 0, FACTOR),
        (unrotated, SWITCHES_OF_SCORES, 1, None),
        (unrotated, [], 0, FACTOR),
        (_with_a_switch(_capped(simplest), OTHER_SCALES), [], 0, None),
        (_capped(simplest), [], 0, FACTOR),  # apart: of a few that come close only the closest are refined
        (_with_a_switch(simplest[:1], SWITCHES_OF_SCORES), [], 0, USUAL_THETA),
        (_with_a_switch(simplest[:1] + _capped(simplest[:1]), LIKELY_SWITCHES), [], 0, FACTOR),
        (_with_a_switch(simplest[:1], SWITCHES_BESIDE_FREQUENCIES), [], 0, PAIR),
        (others if attempt.most > 1 else [], SCORES, 1, None),
        (simplest if attempt.most > 1 else [], in_pairs(SCORES), 2, None),
    ):
        if most == 2 and _only_distances_count(attempt, bases, readings):
            evidence = (
                "the numbers are right for equal positions and depend only on distances, but the angles are wrong"
            )
            raise UnexplainedError("several tokens: the rotation", faults=[("rope_wrong_frequency", evidence)])
        partial = most > 0 and bool(specs) and specs[0][0].rotary_fraction != 1
        faulty = most == 2 or (bool(specs) and specs[0][1] > least)
        likely = kinds[:1] if partial or (faulty and fit is not None) else kinds[: 4 - most] if most else kinds
        every = _turned_both_ways(_with_switches(specs, likely), turned=turned)
        if fit is PAIR:
            every = [] if turned else _with_own_frequencies(attempt, specs, kinds[:1], readings, faulty=True)
        elif fit is not None:
            attempt.check_time()
            every = fitted(fit, every, readings, probe, attempt.trials, faulty=faulty)
            if fit is FACTOR and not every and not turned and specs is not simplest and not faulty:
                every = _with_own_frequencies(attempt, simplest[:1], kinds[:2], readings)
        matches = attempt.trials.find(every, switches, readings, probe, most=most, faulty=faulty)
        if matches:
            break
    else:
        raise UnexplainedError("several tokens: queries and keys, their rotation, scale and softmax")
    if all(spec.frequency != "standard" for spec, _, _ in matches):  # slow pairs look like those that are not turned
        parts = _turned_both_ways(_with_switches(_with_parts(simplest), kinds), turned=turned)
        matches += attempt.trials.find(parts, [], readings, probe, most=0)
    explanations = [Explanation(spec, readings[at[0]], cost) for spec, cost, at in matches]
    return _nearest(attempt, sorted(explanations, key=lambda one: one.cost), probe)


def kinds_of_head_norms(attempt: Attempt, norm: str) -> list[Switch]:
    """Where and how queries and keys may be normalised, the likeliest first. norm: the kind of the block's own."""
    held = attempt.found.head_norms
    before, after, none, whole = (Switch(qk_norm=place) for place in ("before_rope", "after_rope", "none", "whole"))
    layer = Switch(qk_norm_kind="layer")
    if not held:
        return [none, before, after]
    if any(attempt.found.shapes[name] == (attempt.sizes.d_model,) for name in held):
        return [whole, none, whole | layer, whole | layer | Switch(qk_eps=LAYER_NORM_EPS)]
    if any(name in attempt.found.biases for name in held):
        layers = [before | layer, before | layer | Switch(qk_eps=LAYER_NORM_EPS)]
        return [*layers, none, *(one | after for one in layers)]
    return [before, after, none, before | (Switch(qk_norm_kind="rms") if norm == "layer" else layer)]


def _nearest(attempt: Attempt, explanations: list[Explanation], probe: Probe) -> Explanation:
    """The first explanation about as close as the closest: many fit if outputs hardly depend on scores.

    explanations: those of least cost first.
    """
    with torch.no_grad():
        given = [one.forward(probe.raw, probe.x, probe.positions, attempt.sizes.num_heads) for one in explanations]
    gaps = [float((y - probe.y).abs().nan_to_num().max()) for y in given]
    near = 2 * min(gaps) + 1e-9
    return next(one for one, gap in zip(explanations, gaps, strict=True) if gap <= near)


def _louder(attempt: Attempt, reading: Pieces) -> Raw:
    """The parameters with queries so large that outputs depend on them, even if a wrong norm makes them tiny."""
    x = attempt.probe(attempt.raw).x
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
    """Whether the numbers are right for equal positions, and depend only on distances: then it is a rotation."""
    if attempt.built.positions_name is None or attempt.tokens + FAR > USUAL["max_seq_len"]:
        return False
    x = attempt.probe(attempt.raw).x
    zero, near, far = (torch.arange(attempt.tokens) * spread + start for spread, start in ((0, 0), (1, 0), (1, FAR)))
    ats = (at.expand(len(x), -1) for at in (zero, near, far))
    at_zero, at_near, at_far = (attempt.built.run_at(at, attempt.raw, x)[1].y for at in ats)
    expected = block(bases[0][0], weights(readings[:1], attempt.raw), x, zero[None], attempt.sizes.num_heads)
    return agrees(at_zero, expected[0], x, attempt.tolerance) and agrees(at_near, at_far, x, attempt.tolerance)


def _with_a_switch(bases: list[Base], switches: list[Switch]) -> list[Base]:
    return [(dataclasses.replace(spec, **switch), cost + 1) for spec, cost in bases for switch in switches]


def _with_switches(bases: list[Base], kinds: list[Switch]) -> list[Base]:
    """The bases, of each of these kinds, which cost nothing."""
    return [(dataclasses.replace(spec, **kind), cost) for spec, cost in bases for kind in kinds]


def _turned_both_ways(bases: list[Base], *, turned: bool) -> list[Base]:
    """The bases with each pairing and direction, unless an earlier step has found it (turned)."""
    if turned:
        return bases
    return [
        (dataclasses.replace(spec, pairing=pairing, direction=direction), cost)
        for pairing, direction in ROTATIONS
        for spec, cost in bases
    ]


def _capped(bases: list[Base]) -> list[Base]:
    return [(dataclasses.replace(spec, softcap=cap), cost) for cap in (50.0, 30.0, 15.0) for spec, cost in bases]


def _with_parts(bases: list[Base]) -> list[Base]:
    return [
        (dataclasses.replace(spec, rotary_fraction=part), cost) for part in (0.5, 0.25, 0.75) for spec, cost in bases
    ]


def _with_own_frequencies(
    attempt: Attempt, bases: list[Base], kinds: list[Switch], readings: list[Pieces], *, faulty: bool = False
) -> list[Base]:
    """Bases with free frequencies, fitted pair by pair, with all other pairs of queries and keys at zero."""
    dim = attempt.sizes.head_dim
    reading = readings[0]
    found = []
    for (spec, cost), kind, (pairing, direction) in itertools.product(bases, kinds, ROTATIONS):
        attempt.check_time()
        base = dataclasses.replace(spec, **kind, pairing=pairing, direction=direction)
        frequencies = []
        for pair in range(dim // 2):
            members = (2 * pair, 2 * pair + 1) if pairing == "interleaved" else (pair, pair + dim // 2)
            kept = torch.zeros(dim, dtype=attempt.dtype)
            kept[list(members)] = 1
            raw = dict(attempt.raw)
            for role in ("q", "k"):
                for name, shape in ((role, (-1, 1)), (f"{role}_bias", (-1,))):
                    if name in reading:
                        value = reading[name].read(raw)
                        reading[name].write(raw, value * 2 * kept.repeat(len(value) // dim).view(shape))
            one = fitted(PAIR, [(base, cost)], readings[:1], attempt.probe(raw), attempt.trials, faulty=faulty)
            if not one:
                break
            frequencies.append(one[0][0].frequencies[0])
        else:
            found.append((dataclasses.replace(base, frequencies=tuple(frequencies)), cost))
    return found
