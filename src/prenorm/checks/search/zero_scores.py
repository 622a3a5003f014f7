"""The second step, several tokens with all scores zero: masks, and how heads are split and merged."""

import dataclasses

import torch

from ..formula.assign_attention import by_queries_and_keys
from ..formula.parameters import Pieces, Raw, distinct
from ..formula.spec import Spec
from .attempt import Attempt
from .explanation import UnexplainedError
from .switches import ZERO_SCORES_PLAIN, ZERO_SCORES_TURNED
from .trials import Base, Probe


def zero_scores(attempt: Attempt, specs: list[Base], readings: list[Pieces]) -> tuple[list[Base], list[Pieces]]:
    """The specs and readings that explain this step too, with masks, heads, and rotations other than of q and k."""
    specs = [*specs, *((_with_larger_eps(spec), cost) for spec, cost in specs if spec.residual1 != "input")]
    matches: list[tuple[Spec, int, list[Pieces]]] = []
    for group in by_queries_and_keys(readings):
        probe = attempt.probe(_without_scores(attempt, group[0]))
        bases = [
            (dataclasses.replace(spec, mask=mask, pairing=pairing, direction=direction), cost)
            for spec, cost in specs
            for mask in ("none", "causal")
            for pairing, direction in (("interleaved", 1), ("half", 1), ("interleaved", -1), ("half", -1))
        ]
        plain = bases[::4]  # pairing and direction matter only if values are rotated
        if attempt.found.head_norms and not attempt.trials.find(plain, [], group, probe, most=0):
            other = _through_norms_of_heads(attempt, probe, plus_one=specs[0][0].plus_one)
            probe = other if attempt.trials.find(plain, [], group, other, most=0) else probe
        found = attempt.trials.find(plain, ZERO_SCORES_PLAIN, group, probe, keep_going=1)
        if not found:  # ALiBi's scores are not zero
            alibi = [(dataclasses.replace(spec, rope_on="", alibi=True), cost) for spec, cost in plain]
            found = attempt.trials.find(alibi, [], group, probe)
        if not found:
            found = attempt.trials.find(bases, ZERO_SCORES_TURNED, group, probe, keep_going=1)
        if not found and attempt.most > 1:
            found = attempt.trials.find(plain, ZERO_SCORES_PLAIN, group, probe, most=2, faulty=True)
        if not found and attempt.most > 1:
            both = [
                (dataclasses.replace(base, **turn), cost + 1) for base, cost in bases for turn in ZERO_SCORES_TURNED
            ]
            found = attempt.trials.find(both, ZERO_SCORES_PLAIN, group, probe, most=1, faulty=True)
        matches += [(spec, cost, [group[i] for i in indices]) for spec, cost, indices in found]
        if found:
            break
    if not matches:
        raise UnexplainedError("several tokens with all scores zero: mask, heads, and what is rotated beside q and k")
    chosen = [reading for _, _, group in matches for reading in group]
    return [(spec, cost) for spec, cost, _ in matches], distinct(chosen)


def _with_larger_eps(spec: Spec) -> Spec:
    """With the other usual eps: without the residual, norm2 reads averages of values, so small that eps matters."""
    return dataclasses.replace(spec, eps1=1e-5, eps2=1e-5)


def _without_scores(attempt: Attempt, reading: Pieces) -> Raw:
    """The parameters with queries and keys at zero."""
    raw = dict(attempt.raw)
    for role in ("q", "q_bias", "k", "k_bias"):
        if role in reading:
            reading[role].write(raw, torch.zeros(()))
    for norm in attempt.found.head_norms:  # their biases would give scores
        for bias in attempt.found.names(attempt.found.biases.get(norm, norm)):
            raw[bias] = torch.zeros_like(raw[bias])
    return raw


def _through_norms_of_heads(attempt: Attempt, probe: Probe, *, plus_one: bool) -> Probe:
    """The probe with scores at zero by the norms of queries and keys, which without eps make NaN of zeros."""
    raw = dict(attempt.raw)
    for norm in attempt.found.head_norms:
        for name in attempt.found.names(norm):
            raw[name] = torch.full_like(raw[name], -1.0 if plus_one else 0.0)
        for bias in attempt.found.names(attempt.found.biases[norm]) if norm in attempt.found.biases else ():
            raw[bias] = torch.zeros_like(raw[bias])
    return dataclasses.replace(probe, y=attempt.built.run(raw, probe.x).y)
