"""The first step, one token: residuals, norms, feed-forward, value and output weights.

Attention is o(v(norm1(x))), whatever the scores are.
"""

import dataclasses

import torch

from ..formula.assign_attention import OF_ONE_TOKEN
from ..formula.assign_feed_forward import likely_feed_forward
from ..formula.assign_norms import likely_norms, norms_around
from ..formula.parameters import GATE, Pieces, distinct, unique, weights
from ..formula.reference import block
from ..formula.spec import Spec
from ..formula.variants import ENDS, NO_SOFTMAX
from .attempt import Attempt
from .explanation import UnexplainedError
from .fitting import BRANCH, fitted
from .switches import ONE_TOKEN, SLIPS_OF_LAYER_NORM, Switch, in_pairs
from .trials import Base, Match, Probe

MANY_SPECS = 3
"""How many specs go on to the next step: some differ only with several tokens."""
MANY_READINGS = 24
"""With more readings than these, two switches at once would take too long."""
USUAL_EPS = (1e-5, 1e-4, 1e-3)
ROUNDING = 1e-9  # of numbers in float64
AFTER: tuple[Switch, ...] = ({"sandwich": True}, {"layer_scale": True})
"""What may follow the sublayers and has a weight of the stream's size."""
SOME_READINGS = 8
"""How many readings of attention are tried if nothing tells which are likely."""


def one_token(
    attempt: Attempt, attention: list[Pieces], feed_forward: list[Pieces], norms: list[Pieces]
) -> tuple[list[Base], list[Pieces]]:
    """The specs that explain one token, with their costs, and the readings for which they do."""
    probe = attempt.of_one_token(attempt.raw)
    visible = _visible(attempt, probe)
    bases = [Spec()]
    sees_itself = bool(visible) and bool(torch.isfinite(probe.y).all())
    if not sees_itself:
        probe, visible, bases = attempt.of_two_tokens(attempt.raw), set(), _blind_to_themselves()
    if any(GATE in reading for reading in attention):
        bases = [dataclasses.replace(base, attention_gate=gate) for gate in ("before", "after") for base in bases]
    by_heads = attention[:SOME_READINGS]  # with some kinds of softmax, queries and keys matter too
    attention = _reading_visible(attempt, attention, visible)
    bases = [dataclasses.replace(base, plus_one=plus_one) for plus_one in _offsets(attempt) for base in bases]
    every = [a | f | n for f in feed_forward for n in norms for a in attention]
    inner = likely_feed_forward(feed_forward)
    likely = [a | f | n for f in inner for n in likely_norms(norms) for a in attention[:4]]
    turned = [a | f | n for f in inner for n in likely_norms(norms) for a in by_heads]
    heads = [dataclasses.replace(base, softmax="heads") for base in bases]
    others = [dataclasses.replace(base, softmax=kind) for kind in NO_SOFTMAX for base in bases]
    whole = len(attempt.found.attention) <= 4
    designs = _designs(bases, likely[0])
    twice = [one for one in _with_ends(_pre_norm(_likeliest(bases, likely[0]))) if one.activation == one.end2]
    around = [a | f | n for f in inner for n in norms_around(attempt.found) for a in attention[:4]]
    starts = [dataclasses.replace(base, **after) for after in AFTER for base in bases]
    kinds = ("layer", "layer_unbiased") if "norm1_bias" in likely[0] else ()
    layered = [one for kind in kinds for one in _likeliest(bases, likely[0], kind)]
    without_bias = [] if layered else _likeliest(bases, likely[0], "layer")
    meant = _pre_norm(layered or without_bias)
    slips = [dataclasses.replace(one, **switch) for one in meant for switch in SLIPS_OF_LAYER_NORM]
    matches: list[Match] = []
    for specs, readings, most in (
        (bases, likely, 1),
        (designs, likely, 0),
        (_with_ends(bases + _pre_norm(designs)), likely, 0),
        (_scaled(attempt, bases, likely, probe), likely, 0),
        (layered, likely, 1),
        (slips, likely, 0),
        (starts + _designs(starts, likely[0]) if around else [], around, 0),
        (_pre_norm(_likeliest(starts, likely[0])), around, 1),
        (bases, every, 1),
        (designs, every[:MANY_READINGS], 0),
        (_likeliest(bases, likely[0]) if not layered else [], likely, 1),
        (twice, likely, 1),
        (others + _designs(others[:1], likely[0]) if whole else [], turned, 0),
        (heads if whole else [], turned, 1),
        (_designs(heads, likely[0]) if whole else [], turned[:MANY_READINGS], 0),
        (bases, likely, 2),
        (bases, every, 2),
        (without_bias, likely, 1),
        (heads if whole else [], turned, 2),
    ):
        if not specs or not readings or not attempt.tried < most <= attempt.most:
            continue
        if most == 2 and len(readings) > MANY_READINGS:
            continue
        # readings with more weights come first: an unused norm weight fits every reading
        more = (readings is turned) + (specs is slips)
        costs = [(spec, more + (not spec.end1 == spec.end2 == "no")) for spec in specs]
        switches, faulty = in_pairs(ONE_TOKEN) if most == 2 else ONE_TOKEN, most == 2 or specs is without_bias
        matches = attempt.trials.find(costs, switches, readings, probe, most=most, faulty=faulty)
        if matches:
            break
    if not matches:
        attempt.tried = attempt.most
        step = "one token alone: residuals, norms, feed-forward, value and output projections"
        raise UnexplainedError(step, faults=_other_norm(attempt, bases, likely))
    best = min(cost for _, cost, _ in matches)
    specs = list(dict.fromkeys(spec for spec, cost, _ in matches if cost == best))[:MANY_SPECS]
    chosen = [readings[i] for spec, _, indices in matches for i in indices if spec in specs]
    specs = [_with_nearest_eps(attempt, spec, chosen[0], probe) for spec in specs]
    if not sees_itself:  # the next step finds the mask
        specs = [dataclasses.replace(spec, mask="none", empty_rows="nan", fill=-float("inf")) for spec in specs]
    return [(spec, best) for spec in dict.fromkeys(specs)], distinct(chosen)


def _with_nearest_eps(attempt: Attempt, spec: Spec, reading: Pieces, probe: Probe) -> Spec:
    """The spec with the usual eps that comes nearest: another may be within the tolerance, and not in later steps."""
    usual = [spec, *(dataclasses.replace(spec, eps1=eps, eps2=eps) for eps in USUAL_EPS)]
    values = weights([reading], probe.raw)
    gaps = [
        float(
            (block(one, values, probe.x, probe.positions, attempt.sizes.num_heads)[0] - probe.y)
            .abs()
            .nan_to_num()
            .max()
        )
        for one in usual
    ]
    return next(one for one, gap in zip(usual, gaps, strict=True) if gap <= 2 * min(gaps) + ROUNDING)


def _with_ends(specs: list[Spec]) -> list[Spec]:
    """The specs with something that should not be there at the end of one sublayer."""
    ends = [end for end in ENDS if end != "no"]
    switches: list[Switch] = [{which: end} for end in ends for which in ("end2", "end1")]
    return [dataclasses.replace(spec, **switch) for spec in specs for switch in switches]


def _pre_norm(specs: list[Spec]) -> list[Spec]:
    return [one for one in specs if not one.post and one.parallel == "no"]


def _scaled(attempt: Attempt, bases: list[Spec], readings: list[Pieces], probe: Probe) -> list[Spec]:
    """Bases with the outputs of the sublayers multiplied by a number, which is fitted."""
    return [spec for spec, _ in fitted(BRANCH, [(one, 0) for one in bases], readings, probe, attempt.trials)]


def _likeliest(bases: list[Spec], reading: Pieces, kind: str = "") -> list[Spec]:
    """The designs that the weights suggest, few enough to search for a fault in each. kind: of norm1, if known."""
    kind = kind or ("layer" if "norm1_bias" in reading else "rms")
    acts = ("silu", "gelu", "tanh-gelu") if "gate" in reading else ("gelu", "tanh-gelu", "relu", "relu squared")
    # One of each possible kind.
    first = {(base.plus_one, base.layer_scale, base.attention_gate): base for base in reversed(bases)}
    return [one for one in _designs([*first.values()], reading) if one.norm1 == kind and one.activation in acts]


def _designs(bases: list[Spec], reading: Pieces) -> list[Spec]:
    """Designs of published models other than Llama: kinds and places of norms, activations."""
    kinds = ("layer", "layer_unbiased") if "norm1_bias" in reading else ("rms", "layer")
    acts = (
        ("silu", "gelu", "tanh-gelu", "relu")
        if "gate" in reading
        else ("gelu", "tanh-gelu", "relu", "silu", "relu squared")
    )
    places: tuple[Switch, ...] = (
        {},
        {"parallel": "own"},
        {"parallel": "shared"},
        {"post": "12"},
        {"post": "12", "before_sum": True},
    )
    weights: tuple[Switch, ...] = ({},) if "norm1" in reading else ({"weight1": "none", "weight2": "none"},)
    return [
        dataclasses.replace(base, norm1=kind, norm2=kind, activation=act, **place, **weight)
        for base in bases[:4]
        for place in places
        for kind in kinds
        for act in acts
        for weight in weights
    ]


def _other_norm(attempt: Attempt, bases: list[Spec], readings: list[Pieces]) -> list[tuple[str, str]]:
    """Report norm_wrong_mean if vectors of 1 and -1, for which all kinds of means agree, give correct numbers.

    One sublayer at a time, whose norm may be off by a factor.
    """
    half = torch.ones(2, 1, attempt.sizes.d_model // 2, dtype=attempt.dtype)
    half[..., torch.randperm(half.shape[-1], generator=attempt.generator)[: half.shape[-1] // 2]] = -1
    signs = torch.cat([half, -half], -1).repeat(1, attempt.built.lengths.single, 1)
    factors: list[Switch] = [{"norm_factor": 2.0 ** (power / 4)} for power in range(-20, 21) if power]
    starts = [(base, 0) for base in bases[:4]]
    usual = True
    for muted in ("down", "o" if "o" in readings[0] else "v"):
        raw = dict(attempt.raw)
        for role in (muted, f"{muted}_bias"):
            if role in readings[0]:
                readings[0][role].write(raw, torch.zeros(()))
        probe = Probe(raw, signs, attempt.built.run(raw, signs).y, attempt.tolerance)
        if not attempt.trials.find(starts, factors, readings, probe, most=1):
            return []
        usual &= bool(attempt.trials.find(starts, [], readings, attempt.of_one_token(raw), most=0))
    evidence = "each sublayer is right for vectors of entries 1 and -1 (or off by a number), and wrong for others"
    return [] if usual else [("norm_wrong_mean", evidence)]


def _offsets(attempt: Attempt) -> list[bool]:
    """Whether the norms multiply by 1 + weight: then other weights have no effect at -1, otherwise at 0."""
    others = attempt.built.draw(attempt.generator, attempt.dtype)
    counting = {
        one for name in attempt.found.attention + attempt.found.feed_forward for one in attempt.found.names(name)
    }
    x, biases = attempt.of_one_token(attempt.raw).x, attempt.found.biases
    for plus_one in (False, True):
        raw = dict(attempt.raw)
        for norm in attempt.found.norms:
            norm.write(raw, torch.full((), -float(plus_one)))
            raw |= {bias: torch.zeros_like(raw[bias]) for name in norm.parameters if (bias := biases.get(name))}
        changed = raw | {name: others[name] for name in counting}
        if torch.equal(attempt.built.run(raw, x).y, attempt.built.run(changed, x).y):
            return [plus_one]
    return [False, True]


def _blind_to_themselves() -> list[Spec]:
    """Specs to start from if a single token shows nothing: masks that hide a token from itself, and the usual ones."""
    fills = (("nan", -float("inf")), ("zero", -float("inf")), ("nan", -1e9))
    strict = [
        Spec(mask=mask, empty_rows=empty, fill=fill) for mask in ("strict", "future_strict") for empty, fill in fills
    ]
    return [*strict, Spec(), Spec(mask="causal")]


def _visible(attempt: Attempt, probe: Probe) -> set[str]:
    """The attention parameters that one token's output depends on."""
    visible = set()
    for entry in attempt.found.attention:
        changed = dict(attempt.raw)
        for name in attempt.found.names(entry):
            changed[name] = changed[name] * 1.5 + 0.1
        y = attempt.built.run(changed, probe.x).y
        if not torch.equal(y, probe.y) and (y - probe.y).abs().max() > 1e-9:
            visible.add(entry)
    return visible


def _reading_visible(attempt: Attempt, attention: list[Pieces], visible: set[str]) -> list[Pieces]:
    """The readings whose value and output weights are those that one token's output depends on."""
    for roles in (("v", "o", GATE), ("v",)):  # an output projection may be there and have no effect
        shown = [reading for reading in attention if _holding(attempt, reading, roles) == visible]
        if shown:
            return unique(shown, OF_ONE_TOKEN)
    return attention[:SOME_READINGS] if visible else attention


def _holding(attempt: Attempt, reading: Pieces, roles: tuple[str, ...]) -> set[str]:
    """The attention parameters that hold these roles in a reading."""
    held = {name for role in roles if role in reading for name in reading[role].parameters}
    return {entry for entry in attempt.found.attention if held & set(attempt.found.names(entry))}
