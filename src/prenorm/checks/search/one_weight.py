"""The search for blocks in which one weight gives several of queries, keys and values, or both gate and up.

It comes first, where a weight is not used or not there, and tries right designs only: such a block cannot be taken
apart into the usual steps, in which queries and keys are zero.
"""

import contextlib
import dataclasses
from collections.abc import Callable

from ..formula.assign_attention import attention_readings, readings_of_few, with_same_values
from ..formula.assign_feed_forward import feed_forward_readings
from ..formula.assign_norms import norm_readings
from ..formula.parameters import Pieces
from ..formula.sharing import one_for_gate_and_up, one_weight_twice
from ..subject.raised import LearnerError
from .attempt import Attempt
from .explanation import Explanation, UnexplainedError
from .fitting import USUAL_THETA, fitted
from .one_token import one_token
from .scores import ROTATIONS, kinds_of_head_norms
from .sizes import MOST
from .switches import Switch
from .trials import Base
from .work import Work

WORK = 500_000
"""What each of both may take, beyond what the other searches may: about half a second."""
TURNS: tuple[Switch, ...] = (*({"pairing": pairing, "direction": way} for pairing, way in ROTATIONS), {"rope_on": ""})


def of_one_weight(new: Callable[[], Attempt]) -> Explanation | None:
    """The explanation, where a weight is not used or not there. new: makes attempts."""
    found, sizes = new().found, new().sizes
    if not readings_of_few(found, sizes) and not _unused(new()):
        return None
    attention, feed_forward = list(attention_readings(found, sizes)), list(feed_forward_readings(found, sizes))
    for first, second in (
        (one_weight_twice(attention, found, sizes), feed_forward),
        (attention, one_for_gate_and_up(feed_forward)),
    ):
        attempt = new()
        attempt.begin(0, Work(WORK))
        with contextlib.suppress(UnexplainedError):
            if first and second:
                starts, readings = one_token(attempt, first, second, list(norm_readings(found)))
                if explanation := _several_tokens(attempt, starts, with_same_values(readings, first)):
                    return explanation
    return None


def _unused(attempt: Attempt) -> bool:
    """Whether a matrix of a block has no gradient."""
    found = attempt.found
    if max(len(found.attention), len(found.feed_forward)) > MOST:
        return False
    x = attempt.probe(attempt.raw).x
    try:
        gradients = attempt.built.run(attempt.raw, x, cotangent=x).gradients
    except LearnerError:
        return False
    held = [name for entry in (*found.attention, *found.feed_forward) for name in found.names(entry)]
    return any(name in gradients and gradients[name] is None for name in held)


def _several_tokens(attempt: Attempt, starts: list[Base], readings: list[Pieces]) -> Explanation | None:
    specs: list[Base] = [
        (dataclasses.replace(spec, mask=mask, **kind, **turn), cost + 1)
        for spec, cost in starts
        for mask in ("none", "causal")
        for kind in kinds_of_head_norms(attempt, spec.norm1)
        for turn in TURNS
    ]
    probe = attempt.probe(attempt.raw)
    matches = attempt.trials.find(specs, [], readings, probe, most=0)
    if not matches:
        near = fitted(USUAL_THETA, [one for one in specs if one[0].rope_on], readings, probe, attempt.trials)
        matches = attempt.trials.find(near, [], readings, probe, most=0)
    return next((Explanation(spec, readings[at[0]], cost) for spec, cost, at in matches), None)
