"""Finds the switches under which the reference gives the learner's numbers: the fewest that do.

In three steps, each of which hides what the later ones look at, so that two faults at once stay countable:
one token (residuals, norms, feed-forward, value and output weights), several tokens with zero scores (mask, heads,
rotated values), several tokens (queries, keys, rotation, scale).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .learner import Built
from .parameters import Parameters, Pieces, Raw, Sizes, possible_d_ff, sort_parameters, weights
from .reading import (
    attention_readings,
    by_queries_and_keys,
    distinct,
    feed_forward_readings,
    head_norm_readings,
    likely_feed_forward,
    likely_norms,
    norm_readings,
    unique,
    with_same_values,
)
from .reference import Spec, block
from .search import Base, Match, Probe, Search, agrees
from .switches import ONE_TOKEN, SCORES, ZERO_SCORES_PLAIN, ZERO_SCORES_TURNED, Switch
from .variants import NO_SOFTMAX

TOKENS = 7
MANY_SPECS = 3
"""With which the next step goes on, of those that give the numbers of one token: some differ in several only."""
LOUD = 0.01
"""Of the largest output: what the sign of all queries has to change."""
MANY_READINGS = 24
"""With more readings than these, two switches at once in the first step would take too long."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A spec and a reading that give the learner's numbers, and how many switches it took."""

    spec: Spec
    reading: Pieces
    cost: int

    def changed(self, **changes: Any) -> "Explanation":
        """With other values in some fields of the spec."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, **changes))

    def forward(
        self, raw: Raw, x: Tensor, positions: Tensor, num_heads: int, *, allowed: Tensor | None = None
    ) -> Tensor:
        """What the learner's block should give, were its faults only those of the spec."""
        return block(self.spec, weights([self.reading], raw), x, positions, num_heads, allowed=allowed)[0]


class UnexplainedError(Exception):
    """No spec gives the numbers. step: what was looked at; faults: what can be said all the same, id and evidence.

    unknown: parameters that are no weight of a block by their shape, or only a part of one.
    """

    def __init__(self, step: str, faults: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(step)
        self.step = step
        self.faults = tuple(faults)
        self.unknown: tuple[str, ...] = ()


def explain(
    built: Built, generator: torch.Generator, *, tolerance: float, dtype: torch.dtype, most: int = 2
) -> Explanation:
    """The simplest explanation of the block's numbers. Raises UnexplainedError without one.

    most: the switches that are turned together, at most, in each of the three steps.
    """
    problem: UnexplainedError | None = None
    possible = _fitting_sizes(built)
    for together in range(1 if len(possible) > 1 else most, most + 1):
        for sizes, found in possible:
            try:
                steps = _Steps(built, sizes, found, generator, tolerance, dtype, together)
                steps.search.most_work //= len(possible)
                return steps.run()
            except UnexplainedError as error:
                error.unknown = _unknown(sizes, found)
                problem = problem or error
    assert problem is not None
    raise problem


def unknown_parameters(built: Built) -> tuple[str, ...]:
    """Parameters that are no weight of a block by their shape, such as adapters and tables."""
    return tuple(_fitting_sizes(built)[0][1].unknown)


def _unknown(sizes: Sizes, found: Parameters) -> tuple[str, ...]:
    whole = (sizes.num_heads, sizes.num_kv_heads)  # one part a head
    return (*found.unknown, *(name for name, held in found.parts.items() if len(held) not in whole))


class _Steps:
    def __init__(
        self,
        built: Built,
        sizes: Sizes,
        found: Parameters,
        generator: torch.Generator,
        tolerance: float,
        dtype: torch.dtype,
        most: int,
    ) -> None:
        self.built, self.generator, self.tolerance, self.dtype, self.most = built, generator, tolerance, dtype, most
        self.sizes, self.found = sizes, found
        self.search = Search(self.sizes.num_heads, built.learner.check_time)
        self.raw = built.draw(generator, dtype)
        self.head_norms = list(head_norm_readings(self.found))

    def run(self) -> Explanation:
        attention = list(attention_readings(self.found, self.sizes))
        feed_forward = list(feed_forward_readings(self.found, self.sizes))
        norms = list(norm_readings(self.found))
        if not attention or not feed_forward:
            raise UnexplainedError(self._unrecognised(not attention))
        specs, readings = self._one_token(attention, feed_forward, norms)
        bases, readings = self._zero_scores(specs, with_same_values(readings, attention))
        return self._all(bases, readings)

    def _unrecognised(self, attention: bool) -> str:
        found, what = self.found, "queries, keys and values" if attention else "a feed-forward"
        found.unknown += found.attention if attention else found.feed_forward
        shapes = ", ".join(f"{name} {found.shapes[name]}" for name in found.unknown) or "none"
        return f"the parameters do not make up {what}: {shapes}"

    def _probe(self, raw: Raw, tokens: int) -> Probe:
        """Two sequences, or of one token each as many as have as many numbers."""
        batch = 2 * TOKENS if tokens == 1 else 2
        x = torch.randn(batch, tokens, self.sizes.d_model, generator=self.generator, dtype=torch.float64)
        sizes = torch.tensor([4.0, 8.0]).repeat(TOKENS)[:batch, None, None]  # so large that eps hardly shows
        x = ((x + 0.3) * sizes).to(self.dtype)
        return Probe(raw, x, self.built.run(raw, x).y, self.tolerance)

    # One token: attention is o(v(norm1(x))), whatever the scores are.

    def _one_token(
        self, attention: list[Pieces], feed_forward: list[Pieces], norms: list[Pieces]
    ) -> tuple[list[Base], list[Pieces]]:
        probe = self._probe(self.raw, 1)
        visible = self._visible(probe)
        bases = [Spec()]
        sees_itself = bool(visible) and bool(torch.isfinite(probe.y).all())
        if not sees_itself:
            probe = self._probe(self.raw, 2)
            visible = set()
            bases = [
                Spec(mask=mask, empty_rows=empty, fill=fill)
                for mask in ("strict", "future_strict")
                for empty, fill in (("nan", -float("inf")), ("zero", -float("inf")), ("nan", -1e9))
            ]
            bases += [Spec(), Spec(mask="causal")]
        by_heads = attention[:8]  # some kinds of softmax make queries and keys visible, too
        shown = [reading for reading in attention if self._shown(reading, ("v", "o")) == visible]
        if not shown:  # an output projection that is there and has no effect
            shown = [reading for reading in attention if self._shown(reading, ("v",)) == visible]
        if shown:
            attention = unique(shown, ("v", "o", "v_bias", "o_bias"))
        elif visible:
            attention = by_heads
        bases = [dataclasses.replace(base, plus_one=plus_one) for plus_one in self._offsets() for base in bases]
        every = [a | f | n for f in feed_forward for n in norms for a in attention]
        inner = likely_feed_forward(feed_forward)
        likely = [a | f | n for f in inner for n in likely_norms(norms) for a in attention[:4]]
        turned = [a | f | n for f in inner for n in likely_norms(norms) for a in by_heads]
        heads = [dataclasses.replace(base, softmax="heads") for base in bases]
        others = [dataclasses.replace(base, softmax=kind) for kind in NO_SOFTMAX for base in bases]
        whole = len(self.found.attention) <= 4
        for specs, readings, most in (
            (bases, likely, 1),
            (bases, every, 1),
            (others if whole else [], turned, 0),
            (heads if whole else [], turned, 1),
            (bases, likely, 2),
            (bases, every, 2),
            (heads if whole else [], turned, 2),
        ):
            if most > self.most or (most == 2 and len(readings) > MANY_READINGS):
                continue
            matches = self.search.find(
                [(spec, int(readings is turned)) for spec in specs], ONE_TOKEN, readings, probe, most=most
            )
            if matches:
                break
        else:
            step = "one token alone: residuals, norms, feed-forward, value and output projections"
            raise UnexplainedError(step, self._other_norm(bases, likely))
        # a norm's weight that neither is read nor changes anything counts for nothing: readings with more weights first
        best = min(cost for _, cost, _ in matches)
        specs = list(dict.fromkeys(spec for spec, cost, _ in matches if cost == best))[:MANY_SPECS]
        chosen = [readings[i] for spec, _, indices in matches for i in indices if spec in specs]
        if not sees_itself:  # the next step looks at masks by itself
            specs = [dataclasses.replace(spec, mask="none", empty_rows="nan", fill=-float("inf")) for spec in specs]
        return [(spec, best) for spec in dict.fromkeys(specs)], distinct(chosen)

    def _other_norm(self, bases: list[Spec], readings: list[Pieces]) -> list[tuple[str, str]]:
        """Whether all is right where every entry is as large as the others, so that every kind of mean is the same.

        One sublayer at a time, with a number of its own by which its norm may be off.
        """
        signs = torch.ones(2, 1, self.sizes.d_model, dtype=self.dtype)
        signs[..., torch.randperm(self.sizes.d_model // 2, generator=self.generator)[: self.sizes.d_model // 4]] = -1
        signs[..., self.sizes.d_model // 2 :] = -signs[..., : self.sizes.d_model // 2]
        factors: list[Switch] = [{"norm_factor": 2.0 ** (power / 4)} for power in range(-20, 21) if power]
        search = Search(self.sizes.num_heads, self.built.learner.check_time)  # the other one may have no work left
        starts = [(base, 0) for base in bases[:4]]
        usual = True
        for muted in ("down", "o" if "o" in readings[0] else "v"):
            raw = dict(self.raw)
            for role in (muted, f"{muted}_bias"):
                if role in readings[0]:
                    readings[0][role].write(raw, torch.zeros(()))
            probe = Probe(raw, signs, self.built.run(raw, signs).y, self.tolerance)
            if not search.find(starts, factors, readings, probe, most=1):
                return []
            usual &= bool(search.find(starts, [], readings, self._probe(raw, 1), most=0))
        evidence = "each sublayer is right for vectors of entries 1 and -1 (or off by a number), and wrong for others"
        return [] if usual else [("norm_wrong_mean", evidence)]

    def _offsets(self) -> list[bool]:
        """Whether the norms multiply by 1 + weight: at -1 nothing counts then but the residuals, elsewhere at 0."""
        others = self.built.draw(self.generator, self.dtype)
        counting = {one for name in self.found.attention + self.found.feed_forward for one in self.found.names(name)}
        x = self._probe(self.raw, 1).x
        for plus_one in (False, True):
            raw = dict(self.raw)
            for norm in self.found.norms:
                norm.write(raw, torch.full((), -float(plus_one)))
            changed = raw | {name: others[name] for name in counting}
            if torch.equal(self.built.run(raw, x).y, self.built.run(changed, x).y):
                return [plus_one]
        return [False, True]

    def _visible(self, probe: Probe) -> set[str]:
        """The attention parameters that one token's output depends on."""
        visible = set()
        for entry in self.found.attention:
            changed = dict(self.raw)
            for name in self.found.names(entry):
                changed[name] = changed[name] * 1.5 + 0.1
            y = self.built.run(changed, probe.x).y
            if not torch.equal(y, probe.y) and (y - probe.y).abs().max() > 1e-9:
                visible.add(entry)
        return visible

    def _shown(self, reading: Pieces, roles: tuple[str, ...]) -> set[str]:
        """The attention parameters that hold these roles in a reading."""
        held = {name for role in roles if role in reading for name in reading[role].parameters}
        return {entry for entry in self.found.attention if held & set(self.found.names(entry))}

    # Several tokens, all scores zero: who sees whom, and how heads are cut and joined.

    def _zero_scores(self, specs: list[Base], readings: list[Pieces]) -> tuple[list[Base], list[Pieces]]:
        matches: list[tuple[Spec, int, list[Pieces]]] = []
        for group in by_queries_and_keys(readings):
            raw = self._without_scores(group[0])
            probe = self._probe(raw, TOKENS)
            bases = [
                (dataclasses.replace(spec, mask=mask, pairing=pairing, direction=direction), cost)
                for spec, cost in specs
                for mask in ("none", "causal")
                for pairing, direction in (("interleaved", 1), ("half", 1), ("interleaved", -1), ("half", -1))
            ]
            plain = bases[::4]  # where no value turns, pairing and direction do not show
            found = self.search.find(plain, ZERO_SCORES_PLAIN, group, probe, keep_going=1)
            if not found:
                found = self.search.find(bases, ZERO_SCORES_TURNED, group, probe, keep_going=1)
            if not found and self.most > 1:
                found = self.search.find(plain, ZERO_SCORES_PLAIN, group, probe, most=2)
            if not found and self.most > 1:
                both = [
                    (dataclasses.replace(base, **turn), cost + 1) for base, cost in bases for turn in ZERO_SCORES_TURNED
                ]
                found = self.search.find(both, ZERO_SCORES_PLAIN, group, probe, most=1)
            matches += [(spec, cost, [group[i] for i in indices]) for spec, cost, indices in found]
            if found:
                break
        if not matches:
            raise UnexplainedError(
                "several tokens with all scores zero: mask, heads, and what is rotated beside q and k"
            )
        chosen = [reading for _, _, group in matches for reading in group]
        return [(spec, cost) for spec, cost, _ in matches], distinct(chosen)

    def _without_scores(self, reading: Pieces) -> Raw:
        """The parameters with everything that queries are made of at zero."""
        raw = dict(self.raw)
        for role in ("q", "q_bias", "k", "k_bias"):
            if role in reading:
                reading[role].write(raw, torch.zeros(()))
        return raw

    # Everything.

    def _all(self, bases: list[Base], readings: list[Pieces]) -> Explanation:
        probe = self._probe(self._louder(readings[0]), TOKENS)
        head_norms = list(self.head_norms)
        if head_norms != [{}] and bases[0][0].weight1 == bases[0][0].weight2 == "none":  # of one class with these
            head_norms.append({})
        readings = [reading | norms for norms in head_norms for reading in readings]
        rotations = [("interleaved", 1), ("half", 1), ("interleaved", -1), ("half", -1)]
        kinds = ["none", "before_rope", "after_rope"]
        if self.head_norms != [{}]:
            kinds = ["before_rope", "after_rope", "none"]
            if self.found.head_norms and self.found.shapes[self.found.head_norms[0]] == (self.sizes.d_model,):
                kinds = ["whole", "none"]
        turned = any("v" in spec.rope_on or spec.rope_input != "no" for spec, _ in bases)
        least = min(cost for _, cost in bases)
        matches: list[Match] = []
        for specs, switches, most in (
            ([base for base in bases if base[1] == least], SCORES, 1),
            ([base for base in bases if base[1] > least], [], 0),
            (_with_other_tables(bases, least), [], 0),
            (_with_other_factors(bases, least), [], 0),
            ([base for base in bases if base[1] > least], SCORES, 1),
            ([base for base in bases if base[1] == least], SCORES, 2),
        ):
            if matches or most > self.most or (self.most == 1 and most == 1 and specs and specs[0][1] > least):
                continue
            if most == 2 and self._some_rotation(bases, readings):
                break
            every = [
                (dataclasses.replace(spec, qk_norm=kind), cost) for spec, cost in specs for kind in kinds[: 4 - most]
            ]
            if not turned:
                every = [
                    (dataclasses.replace(spec, pairing=pairing, direction=direction), cost)
                    for pairing, direction in rotations
                    for spec, cost in every
                ]
            matches = self.search.find(every, switches, readings, probe, most=most)
        if not matches and self._some_rotation(bases, readings):
            raise UnexplainedError(
                "several tokens: the rotation",
                [
                    (
                        "rope_wrong_frequency",
                        "at equal positions all is right, and only distances count, by other angles",
                    )
                ],
            )
        if not matches:
            raise UnexplainedError("several tokens: queries and keys, their rotation, scale and softmax")
        least = min(cost for _, cost, _ in matches)
        explanations = [Explanation(spec, readings[at[0]], cost) for spec, cost, at in matches if cost == least]
        return self._nearest(explanations, probe)

    def _nearest(self, explanations: list[Explanation], probe: Probe) -> Explanation:
        """The first of those that come as near as the nearest: where outputs hardly depend on scores, many fit."""
        with torch.no_grad():
            given = [one.forward(probe.raw, probe.x, probe.positions, self.sizes.num_heads) for one in explanations]
        gaps = [float((y - probe.y).abs().nan_to_num().max()) for y in given]
        near = 2 * min(gaps) + 1e-9
        return next(one for one, gap in zip(explanations, gaps, strict=True) if gap <= near)

    def _louder(self, reading: Pieces) -> Raw:
        """The parameters, with queries so large that outputs depend on them: a wrong norm may make them tiny."""
        x = self._probe(self.raw, TOKENS).x
        for power in range(5):
            loud, turned = dict(self.raw), dict(self.raw)
            queries = reading["q"].read(self.raw) * 10.0**power
            reading["q"].write(loud, queries)
            reading["q"].write(turned, -queries)
            y = self.built.run(loud, x).y
            if not (y - self.built.run(turned, x).y).abs().max() < LOUD * y.abs().max():
                return loud
        return self.raw

    def _some_rotation(self, bases: list[Base], readings: list[Pieces]) -> bool:
        """Whether all is right at one and the same position, and elsewhere only distances count: a rotation it is."""
        if self.built.positions_name is None:
            return False
        x = self._probe(self.raw, TOKENS).x
        zero, near, far = (torch.arange(TOKENS) * spread + start for spread, start in ((0, 0), (1, 0), (1, 5)))
        at_zero, at_near, at_far = (self.built.run(self.raw, x, positions=at).y for at in (zero, near, far))
        expected = block(bases[0][0], weights(readings[:1], self.raw), x, zero[None], self.sizes.num_heads)
        return agrees(at_zero, expected[0], x, self.tolerance) and agrees(at_near, at_far, x, self.tolerance)


def _fitting_sizes(built: Built) -> list[tuple[Sizes, Parameters]]:
    """The sizes, with the number of key-value heads that the parameters have, and the parameters sorted by them.

    Two of them where a block with the heads that were asked for would lack a weight, and one with fewer would not.
    """
    listed = [*built.parameters, *built.plain_weights]
    possible = []
    for d_ff, heads in itertools.product(possible_d_ff(listed, built.sizes), (built.sizes.num_kv_heads, 2, 1)):
        sizes = dataclasses.replace(built.sizes, num_kv_heads=heads, d_ff=d_ff)
        found = sort_parameters(listed, sizes)
        first, inner = next(attention_readings(found, sizes), None), next(feed_forward_readings(found, sizes), None)
        if first is not None and inner is not None:
            lacking = ("o" not in first) + ("gate" not in inner)
            possible.append((heads != built.sizes.num_kv_heads, lacking, (sizes, found)))
    if not possible:
        return [(built.sizes, sort_parameters(listed, built.sizes))]
    best = min(possible, key=lambda one: one[:2])
    wholer = [one for one in possible if one[1] < best[1]]
    return [best[2], *(one[2] for one in sorted(wholer, key=lambda one: one[1])[:1])]


def _with_other_tables(bases: list[Base], least: int) -> list[Base]:
    """The simplest bases with another theta, or with a part of each head turned only."""
    return [
        (dataclasses.replace(spec, theta=theta, rotary_fraction=fraction), cost)
        for spec, cost in bases
        for theta in (10000.0, 500000.0, 1e6, 1000.0, 100.0)
        for fraction in (1.0, 0.5, 0.25, 0.75)
        if (theta, fraction) != (10000.0, 1.0) and cost == least
    ]


def _with_other_factors(bases: list[Base], least: int) -> list[Base]:
    """The simplest bases with scores of other sizes: powers of 2, up and down, and their roots."""
    return [
        (dataclasses.replace(spec, factor=2.0 ** (power / 4)), cost + 1)
        for spec, cost in bases
        for power in range(-24, 25)
        if power and cost == least
    ]
