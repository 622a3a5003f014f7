"""Finds the switches under which the reference gives the learner's numbers: the fewest that do.

In three steps, each of which hides what the later ones look at, so that two faults at once stay countable:
one token (residuals, norms, feed-forward, value and output weights), several tokens with zero scores (mask, heads,
rotated values), several tokens (queries, keys, rotation, scale).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .learner import Answer, Built
from .reading import (
    Parameters,
    Pieces,
    Raw,
    Sizes,
    attention_readings,
    feed_forward_readings,
    head_norm_readings,
    norm_readings,
    possible_d_ff,
    sort_parameters,
    weights,
)
from .reference import ACTIVATIONS, FREQUENCIES, SCALES, SHIFTS, SQUARES, TABLES, Spec, Weights, block

Switch = dict[str, Any]
"""Fields of Spec that change together: one fault."""

TOKENS = 7
MANY_READINGS = 24
"""With more readings than these, two switches at once in the first step would take too long."""
MOST_WORK = 100_000
"""Readings that are tried before it gives up: some 5 seconds, counted so that every machine gives the same verdict."""
LEAST_WORK = 16
"""What one reading by itself costs in these."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A spec and a reading that give the learner's numbers, and how many switches it took."""

    spec: Spec
    reading: Pieces
    cost: int

    def forward(self, raw: Raw, x: Tensor, positions: Tensor, num_heads: int, **options: Any) -> Tensor:
        """What the learner's block should give, were its faults only those of the spec."""
        return block(self.spec, weights([self.reading], raw), x, positions, num_heads, **options)[0]


class UnexplainedError(Exception):
    """No spec gives the numbers. step: what was looked at; faults: what can be said all the same, id and evidence."""

    def __init__(self, step: str, faults: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(step)
        self.step = step
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class _Probe:
    raw: Raw
    x: Tensor
    y: Tensor
    tolerance: float

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.x.shape[-2])[None]


def explain(
    built: Built, generator: torch.Generator, *, tolerance: float, dtype: torch.dtype, most: int = 2
) -> Explanation:
    """The simplest explanation of the block's numbers. Raises UnexplainedError without one.

    most: the switches that are turned together, at most, in each of the three steps.
    """
    return _Search(built, generator, tolerance, dtype, most).run()


def agrees(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> bool:
    """Whether two outputs are alike but for rounding, NaN in the same places included."""
    return bool(_agreement(y, expected.to(y.dtype)[None], x, tolerance)[0])


def _agreement(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> Tensor:
    """For each of the expected outputs (first axis), whether y is it. The scale is that of the numbers compared."""
    if not torch.isfinite(y).any():
        return torch.zeros(len(expected), dtype=torch.bool)
    scale = torch.where(torch.isfinite(y), y, 0).abs().max().clamp(min=x.abs().max() * 0.1)
    error = (expected - y).abs()
    same = (error <= tolerance * scale) | (expected.isnan() & y.isnan()) | (expected == y)
    return same.flatten(1).all(-1)


class _Search:
    def __init__(
        self, built: Built, generator: torch.Generator, tolerance: float, dtype: torch.dtype, most: int
    ) -> None:
        self.built, self.generator, self.tolerance, self.dtype, self.most = built, generator, tolerance, dtype, most
        self.sizes, self.found = _fitting_sizes(built)
        self.work = 0
        self.raw = built.draw(generator, dtype)
        self.head_norms = list(head_norm_readings(self.found))

    def run(self) -> Explanation:
        attention = list(attention_readings(self.found, self.sizes))
        feed_forward = list(feed_forward_readings(self.found, self.sizes))
        norms = list(norm_readings(self.found))
        if not attention or not feed_forward:
            raise UnexplainedError(_unrecognised(self.found, not attention))
        specs, readings = self._one_token(attention, feed_forward, norms)
        bases, readings = self._zero_scores(specs, _with_same_values(readings, attention))
        return self._all(bases, readings)

    def _probe(self, raw: Raw, tokens: int, batch: int = 2) -> _Probe:
        x = torch.randn(batch, tokens, self.sizes.d_model, generator=self.generator, dtype=torch.float64)
        sizes = torch.tensor([4.0, 8.0])[:, None, None]  # so large that eps hardly shows
        x = ((x + 0.3) * sizes[:batch]).to(self.dtype)
        return _Probe(raw, x, self._ask(raw, x).y, self.tolerance)

    def _ask(self, raw: Raw, x: Tensor) -> Answer:
        return self.built.run(raw, x)

    # One token: attention is o(v(norm1(x))), whatever the scores are.

    def _one_token(
        self, attention: list[Pieces], feed_forward: list[Pieces], norms: list[Pieces]
    ) -> tuple[list[tuple[Spec, int]], list[Pieces]]:
        probe = self._probe(self.raw, 1)
        visible = self._visible(probe)
        bases = [Spec()]
        if not visible or not torch.isfinite(probe.y).all():  # one token may not even see itself
            probe = self._probe(self.raw, 2)
            visible = set()
            bases = [
                Spec(mask=mask, empty_rows=empty, fill=fill)
                for mask in ("strict", "future_strict")
                for empty, fill in (("nan", -float("inf")), ("zero", -float("inf")), ("nan", -1e9))
            ]
            bases += [Spec(), Spec(mask="causal")]
        by_heads = attention[:8]  # a softmax over heads makes queries and keys visible, too
        shown = [reading for reading in attention if self._shown(reading, ("v", "o")) == visible]
        if not shown:  # an output projection that is there and has no effect
            shown = [reading for reading in attention if self._shown(reading, ("v",)) == visible]
        if shown:
            attention = _unique(shown, ("v", "o", "v_bias", "o_bias"))
        elif visible:
            attention = by_heads
        bases += [dataclasses.replace(base, plus_one=True) for base in bases if norms != [{}]]
        every = [a | f | n for f in feed_forward for n in norms for a in attention]
        likely = [a | f | n for f in feed_forward[:1] for n in _likely_norms(norms) for a in attention[:4]]
        turned = [a | f | n for f in feed_forward[:1] for n in _likely_norms(norms) for a in by_heads]
        for readings, most in ((likely, 1), (every, 1), (turned, 1), (likely, 2), (every, 2), (turned, 2)):
            if readings is turned and len(self.found.attention) in (1, 2, 4):
                specs = [dataclasses.replace(base, softmax="heads") for base in bases]
            elif readings is turned:
                continue
            else:
                specs = bases
            if most > self.most or (most == 2 and len(readings) > MANY_READINGS):
                continue
            matches = _search(
                [(spec, int(readings is turned)) for spec in specs], _ONE_TOKEN, readings, self, probe, most=most
            )
            if matches:
                break
        else:
            step = "one token alone: residuals, norms, feed-forward, value and output projections"
            raise UnexplainedError(step, self._other_norm(bases, likely))
        best = min(cost for _, cost, _ in matches)
        # a norm's weight that neither is read nor changes anything counts for nothing: readings with more weights first
        matches = [match for match in matches if match[1] == best]
        spec, cost, _ = matches[0]
        chosen = [readings[i] for other, _, indices in matches for i in indices if other == spec]
        kept = dataclasses.replace(spec, mask="none", empty_rows="nan", fill=-float("inf")) if len(bases) > 4 else spec
        return [(kept, cost)], chosen

    def _other_norm(self, bases: list[Spec], readings: list[Pieces]) -> list[tuple[str, str]]:
        """Whether all is right where every entry is as large as the others, so that every kind of mean is the same."""
        signs = torch.ones(2, 1, self.sizes.d_model, dtype=self.dtype)
        signs[..., torch.randperm(self.sizes.d_model // 2, generator=self.generator)[: self.sizes.d_model // 4]] = -1
        signs[..., self.sizes.d_model // 2 :] = -signs[..., : self.sizes.d_model // 2]
        probe = _Probe(self.raw, signs, self._ask(self.raw, signs).y, self.tolerance)
        switches: list[Switch] = [{"norm_factor": 2.0 ** (power / 4)} for power in range(-20, 21) if power]
        if _search([(base, 0) for base in bases[:4]], switches, readings, self, probe, most=1):
            return [("norm_wrong_mean", "outputs are right for vectors of entries 1 and -1, and wrong for others")]
        return []

    def _visible(self, probe: _Probe) -> set[str]:
        """The attention parameters that one token's output depends on."""
        visible = set()
        for entry in self.found.attention:
            changed = dict(self.raw)
            for name in self.found.heads.get(entry, (entry,)):
                changed[name] = changed[name] * 1.5 + 0.1
            y = self._ask(changed, probe.x).y
            if not torch.equal(y, probe.y) and (y - probe.y).abs().max() > 1e-9:
                visible.add(entry)
        return visible

    def _shown(self, reading: Pieces, roles: tuple[str, ...]) -> set[str]:
        """The attention parameters that hold these roles in a reading."""
        held = {name for role in roles if role in reading for name in reading[role].parameters}
        return {entry for entry in self.found.attention if held & set(self.found.heads.get(entry, (entry,)))}

    # Several tokens, all scores zero: who sees whom, and how heads are cut and joined.

    def _zero_scores(
        self, specs: list[tuple[Spec, int]], readings: list[Pieces]
    ) -> tuple[list[tuple[Spec, int]], list[Pieces]]:
        matches: list[tuple[Spec, int, list[Pieces]]] = []
        for group in _by_queries_and_keys(readings):
            raw = self._without_scores(group[0])
            probe = self._probe(raw, TOKENS)
            bases = [
                (dataclasses.replace(spec, mask=mask, pairing=pairing, direction=direction), cost)
                for spec, cost in specs
                for mask in ("none", "causal")
                for pairing, direction in (("interleaved", 1), ("half", 1), ("interleaved", -1), ("half", -1))
            ]
            plain = bases[::4]  # where no value turns, pairing and direction do not show
            found = _search(plain, _ZERO_SCORES_PLAIN, group, self, probe, keep_going=1)
            if not found:
                found = _search(bases, _ZERO_SCORES_TURNED, group, self, probe, keep_going=1)
            if not found and self.most > 1:
                found = _search(plain, _ZERO_SCORES_PLAIN, group, self, probe, most=2)
            if not found and self.most > 1:
                both = [
                    (dataclasses.replace(base, **turn), cost + 1)
                    for base, cost in bases
                    for turn in _ZERO_SCORES_TURNED
                ]
                found = _search(both, _ZERO_SCORES_PLAIN, group, self, probe, most=1)
            matches += [(spec, cost, [group[i] for i in indices]) for spec, cost, indices in found]
            if found:
                break
        if not matches:
            raise UnexplainedError(
                "several tokens with all scores zero: mask, heads, and what is rotated beside q and k"
            )
        chosen = [reading for _, _, group in matches for reading in group]
        return [(spec, cost) for spec, cost, _ in matches], _distinct(chosen)

    def _without_scores(self, reading: Pieces) -> Raw:
        """The parameters with everything that queries are made of at zero."""
        raw = dict(self.raw)
        for role in ("q", "q_bias", "k", "k_bias"):
            if role in reading:
                reading[role].write(raw, torch.zeros(()))
        return raw

    # Everything.

    def _all(self, bases: list[tuple[Spec, int]], readings: list[Pieces]) -> Explanation:
        probe = self._probe(self.raw, TOKENS)
        readings = [reading | norms for norms in self.head_norms for reading in readings]
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
            ([base for base in bases if base[1] == least], _ALL, 1),
            ([base for base in bases if base[1] > least], [], 0),
            (_with_other_tables(bases, least), [], 0),
            (_with_other_factors(bases, least), [], 0),
            ([base for base in bases if base[1] > least], _ALL, 1),
            ([base for base in bases if base[1] == least], _ALL, 2),
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
            matches = _search(every, switches, readings, self, probe, most=most)
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
        spec, cost, indices = min(matches, key=lambda match: match[1])
        return Explanation(spec, readings[indices[0]], cost)

    def _some_rotation(self, bases: list[tuple[Spec, int]], readings: list[Pieces]) -> bool:
        """Whether all is right at one and the same position, and elsewhere only distances count: a rotation it is."""
        if self.built.positions_name is None:
            return False
        x = self._probe(self.raw, TOKENS).x
        zero, near, far = (torch.arange(TOKENS) * spread + start for spread, start in ((0, 0), (1, 0), (1, 5)))
        at_zero, at_near, at_far = (self.built.run(self.raw, x, positions=at).y for at in (zero, near, far))
        expected = block(bases[0][0], weights(readings[:1], self.raw), x, zero[None], self.sizes.num_heads)
        return agrees(at_zero, expected[0], x, self.tolerance) and agrees(at_near, at_far, x, self.tolerance)


Match = tuple[Spec, int, list[int]]


def _search(
    bases: Sequence[tuple[Spec, int]],
    switches: Sequence[Switch],
    readings: list[Pieces],
    search: _Search,
    probe: _Probe,
    *,
    keep_going: int = 0,
    most: int | None = None,
) -> list[Match]:
    """Specs, their cost, and the readings under which they give the probe's numbers, with the fewest switches turned.

    keep_going: up to this many switches, matches with more switches are given as well.
    """
    groups: dict[frozenset[str], list[int]] = {}
    for i, reading in enumerate(readings):
        groups.setdefault(frozenset(reading), []).append(i)
    stacked = [(indices, weights([readings[i] for i in indices], probe.raw)) for indices in groups.values()]
    found: list[Match] = []
    tried: set[Spec] = set()
    deepest = (1 if keep_going else 2) if most is None else most
    for count in range(deepest + 1):
        for combination in itertools.combinations(switches, count):
            if not _together(combination):
                continue
            changes = {name: value for switch in combination for name, value in switch.items()}
            for base, cost in bases:
                spec = dataclasses.replace(base, **changes)
                if spec in tried:
                    continue
                tried.add(spec)
                search.built.learner.check_time()
                search.work += sum(max(len(indices), LEAST_WORK) for indices, _ in stacked)
                if search.work > MOST_WORK:
                    return found
                indices = _matching(spec, stacked, search, probe)
                if indices:
                    found.append((spec, cost + count, indices))
            if found and count == 2:
                return found
        if found and count >= keep_going:
            break
    return sorted(found, key=lambda match: match[1])


def _together(switches: Sequence[Switch]) -> bool:
    """Whether they change different fields, and not both the rotation in ways of which each hides the other."""
    names = [name for switch in switches for name in switch]
    turning = sum(any(name in _ROTATION for name in switch) for switch in switches)
    return len(set(names)) == len(names) and (turning < 2 or "rope_on" in names)


_ROTATION = frozenset(
    {"mixed", "rope_axis", "rope_input", "frequency", "tables", "query_shift", "key_shift", "rope_on"}
)


def _matching(spec: Spec, stacked: list[tuple[list[int], Weights]], search: _Search, probe: _Probe) -> list[int]:
    matching: list[int] = []
    with torch.no_grad():
        for indices, values in stacked:
            try:
                expected = block(spec, values, probe.x, probe.positions, search.sizes.num_heads)
            except RuntimeError:  # weights of these shapes cannot be cut in that way
                continue
            if expected.shape[0] != len(indices):
                expected = expected.expand(len(indices), *expected.shape[1:])
            agreement = _agreement(probe.y, expected, probe.x, probe.tolerance)
            matching += [index for index, good in zip(indices, agreement.tolist(), strict=True) if good]
    return sorted(matching)


def _norm_switches() -> Iterable[Switch]:
    for kind in ("none", "gain", *SQUARES):
        if kind in ("rms", "all"):
            continue
        yield {"norm1": kind, "norm2": kind}
        yield {"norm1": kind}
        yield {"norm2": kind}
    yield {"weight1": "none", "weight2": "none"}
    yield {"weight1": "none"}
    yield {"weight2": "none"}
    for eps in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        yield {"eps1": eps, "eps2": eps}
        yield {"eps1": eps, "eps2": eps, "eps_place1": "outside", "eps_place2": "outside"}
        yield {"eps1": eps}
        yield {"eps2": eps}


_ONE_TOKEN: list[Switch] = [
    {"residual1": "none"},
    {"residual2": "none"},
    {"residual1": "normed"},
    {"residual2": "normed"},
    {"residual1": "normed", "residual2": "normed"},
    {"residual1": "doubled"},
    {"residual2": "doubled"},
    {"residual1": "doubled", "residual2": "doubled"},
    {"residual2": "input"},
    {"post": "12"},
    {"post": "1"},
    {"post": "2"},
    *({"post": post, "pre_too": True} for post in ("12", "1", "2")),
    *({"post": post, "before_sum": True} for post in ("12", "1", "2")),
    {"parallel": "own"},
    {"parallel": "shared"},
    {"output": "none"},
    {"tiled": True},
    {"merge": "mean"},
    {"merge": "sum"},
    *_norm_switches(),
    *({"activation": name} for name in ACTIVATIONS if name != "silu"),
    *({"gating": gating} for gating in ("product", "plain", "both", "sum")),
    *({"gating": "product", "activation": name} for name in ("gelu", "relu", "sigmoid", "tanh")),
]

_ZERO_SCORES_PLAIN: list[Switch] = [
    *({"mask": mask} for mask in ("next", "future", "future_strict")),
    *(
        {"mask": mask, "empty_rows": empty, "fill": fill, "fill_by": by}
        for mask in ("strict",)
        for empty, fill, by in (
            ("nan", -float("inf"), "replacing"),
            ("zero", -float("inf"), "replacing"),
            ("nan", -1e9, "replacing"),
            ("nan", -1e9, "adding"),
        )
    ),
    {"mask": "future_strict", "empty_rows": "zero"},
    {"mask": "future_strict", "fill": -1e9},
    {"mask": "future_strict", "fill": -1e9, "fill_by": "adding"},
    *(
        {"mask": mask, "fill": fill, "fill_by": by}
        for mask in ("causal",)
        for fill in (0.0, -0.1, -1.0, -2.0, -3.0, -5.0, -10.0, 1e-9)
        for by in ("replacing", "adding")
        if (fill, by) != (0.0, "adding")
    ),
    {"softmax": "queries"},
    {"softmax": "heads"},
    {"softmax": "nothing"},
    {"split": "swapped"},
    *({"split": split} for split in ("flat", "dims_first")),
    *({"merge": merge} for merge in ("flat", "flat_dims", "dims_first")),
    *({"split": "flat", "merge": merge} for merge in ("flat", "flat_dims")),
    {"split": "dims_first", "merge": "dims_first"},
    {"split": "flat", "split_of": "v"},
    {"split": "dims_first", "split_of": "v"},
    {"norm1": "all", "norm2": "all"},
    {"norm1": "all"},
    {"norm2": "all"},
]

_ZERO_SCORES_TURNED: list[Switch] = [
    *({"rope_on": on} for on in ("qkv", "v", "kv", "qv")),
    *({"rope_on": on, "rope_axis": "width"} for on in ("qkv", "v")),
    *(
        {"rope_input": kind, "rope_input_axis": axis, "rope_on": on}
        for kind in ("x", "normed", "before_norm")
        for axis in ("width", "head")
        for on in ("", "qk")
    ),
]

_ALL: list[Switch] = [
    *({"rope_on": on} for on in ("", "q", "k")),
    {"rope_axis": "width"},
    {"mixed": True},
    *({"rope_input": "qk", "rope_input_axis": axis, "rope_on": on} for axis in ("width", "head") for on in ("", "qk")),
    *({"frequency": name} for name in FREQUENCIES if name != "standard"),
    *({"tables": tables} for tables in TABLES),
    *({role: shift} for role in ("query_shift", "key_shift") for shift in SHIFTS if shift != "no"),
    *({"split": split, "split_of": roles} for split in ("flat", "dims_first") for roles in ("q", "k", "qk")),
    *({"scale": scale} for scale in SCALES if scale != "1/sqrt(head_dim)"),
    {"softmax": "queries"},
    {"softmax": "heads"},
    {"mask": "causal", "fill_by": "multiplying"},
]


def _fitting_sizes(built: Built) -> tuple[Sizes, Parameters]:
    """The sizes, with the number of key-value heads that the parameters have, and the parameters sorted by them."""
    listed = [*built.parameters, *built.plain_weights]
    possible = []
    for d_ff, heads in itertools.product(possible_d_ff(listed, built.sizes), (built.sizes.num_kv_heads, 2, 1)):
        sizes = dataclasses.replace(built.sizes, num_kv_heads=heads, d_ff=d_ff)
        found = sort_parameters(listed, sizes)
        first, inner = next(attention_readings(found, sizes), None), next(feed_forward_readings(found, sizes), None)
        if first is not None and inner is not None:
            fewer = heads != built.sizes.num_kv_heads
            possible.append(((fewer, ("o" not in first) + ("gate" not in inner)), sizes, found))
    if possible:  # as many key-value heads as were asked for; then a whole one rather than one without gate
        _, sizes, found = min(possible, key=lambda one: one[0])
        return sizes, found
    return built.sizes, sort_parameters(listed, built.sizes)


def _with_other_tables(bases: list[tuple[Spec, int]], least: int) -> list[tuple[Spec, int]]:
    """The simplest bases with another theta, or with a part of each head turned only."""
    return [
        (dataclasses.replace(spec, theta=theta, rotary_fraction=fraction), cost)
        for spec, cost in bases
        for theta in (10000.0, 500000.0, 1e6, 1000.0, 100.0)
        for fraction in (1.0, 0.5, 0.25, 0.75)
        if (theta, fraction) != (10000.0, 1.0) and cost == least
    ]


def _with_other_factors(bases: list[tuple[Spec, int]], least: int) -> list[tuple[Spec, int]]:
    """The simplest bases with scores of other sizes: powers of 2, up and down, and their roots."""
    return [
        (dataclasses.replace(spec, factor=2.0 ** (power / 4)), cost + 1)
        for spec, cost in bases
        for power in range(-24, 25)
        if power and cost == least
    ]


def _likely_norms(norms: list[Pieces]) -> list[Pieces]:
    """The first two different weights in their order, and one weight for both."""
    shared = [one for one in norms if set(one) >= {"norm1", "norm2"} and one["norm1"] == one["norm2"]]
    return _distinct([*norms[:1], *shared[:2]]) if norms != [{}] else norms


def _unique(readings: list[Pieces], names: tuple[str, ...]) -> list[Pieces]:
    seen: dict[tuple[Any, ...], Pieces] = {}
    for reading in readings:
        seen.setdefault(tuple(reading.get(name) for name in names), reading)
    return list(seen.values())


def _distinct(readings: list[Pieces]) -> list[Pieces]:
    return _unique(readings, tuple(sorted({name for reading in readings for name in reading})))


def _with_same_values(chosen: list[Pieces], attention: list[Pieces]) -> list[Pieces]:
    """The readings that were chosen, with every way to read queries and keys beside their values and outputs."""
    names = ("v", "o", "v_bias", "o_bias")
    out = []
    for reading in chosen:
        key = tuple(reading.get(name) for name in names)
        out += [reading | other for other in attention if tuple(other.get(name) for name in names) == key]
    return _distinct(out)


def _by_queries_and_keys(readings: list[Pieces]) -> list[list[Pieces]]:
    """Readings grouped by the parameters that are zero when queries and keys are."""
    groups: dict[frozenset[Any], list[Pieces]] = {}
    for reading in readings:
        held = frozenset((reading[role].parameters, frozenset(reading[role].places or ())) for role in ("q", "k"))
        groups.setdefault(held, []).append(reading)
    return list(groups.values())


def _unrecognised(found: Parameters, attention: bool) -> str:
    names = found.attention if attention else found.feed_forward
    what = "queries, keys and values" if attention else "a feed-forward"
    shapes = ", ".join(f"{name} {found.shapes[name]}" for name in [*names, *found.unknown]) or "none"
    return f"the parameters do not make up {what}: {shapes}"
