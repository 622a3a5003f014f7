"""Finds the fewest switches with which the reference gives the learner's numbers.

It takes three steps, which hide what the later ones look at, so that two faults at once can still be found:
one token (residuals, norms, feed-forward, value and output weights), several tokens with zero scores (mask, heads,
rotated values), several tokens (queries, keys, rotation, scale).
"""

import functools
import itertools

import torch

from ..formula.assign_attention import attention_readings, with_same_values
from ..formula.assign_feed_forward import feed_forward_readings
from ..formula.assign_norms import norm_readings
from ..subject.learner import Built
from .attempt import Attempt
from .explanation import Explanation, OutOfTimeError, UnexplainedError
from .one_token import one_token
from .one_weight import of_one_weight
from .scores import scores
from .sizes import MOST, fitting_sizes
from .work import Work
from .zero_scores import zero_scores


def explain(
    built: Built, generator: torch.Generator, *, tolerance: float, dtype: torch.dtype, work: Work, most: int = 2
) -> Explanation:
    """The simplest explanation of the block's numbers. Raises UnexplainedError if there is none.

    work: what it may take; most: the largest number of switches that are set together, in each of the three steps.
    """
    problem: UnexplainedError | None = None
    fits = fitting_sizes(built)
    new = functools.partial(Attempt, built, generator=generator, tolerance=tolerance, dtype=dtype)
    if (explanation := of_one_weight(functools.partial(new, fits[0]))) is not None:
        return explanation
    attempts = [new(fit) for fit in fits]
    rounds = list(itertools.product(range(1 if len(fits) > 1 else most, most + 1), attempts))
    for (together, attempt), share in zip(rounds, work.shares(len(rounds)), strict=True):
        attempt.begin(together, share)
        try:
            return _steps(attempt)
        except OutOfTimeError:
            raise
        except UnexplainedError as error:
            error.unknown = (*attempt.fit.unknown, *error.unknown, *attempt.fit.uncertain, *attempt.fit.beyond)
            problem = problem or error
    assert problem is not None
    if any(attempt.trials.cut_short for attempt in attempts):
        problem.step += ", where the limit of its work ended the search"
        problem.complete = False
    raise problem


def _steps(attempt: Attempt) -> Explanation:
    found, sizes = attempt.found, attempt.sizes
    for what, entries in (("attention", found.attention), ("feed-forward", found.feed_forward)):
        if len(entries) > MOST:
            raise UnexplainedError(f"naming the parameters, of which {what} has more than a block's", unknown=entries)
    attention = list(attention_readings(found, sizes))
    feed_forward = list(feed_forward_readings(found, sizes))
    if not attention or not feed_forward:
        what, which = (
            ("a feed-forward", found.feed_forward) if attention else ("queries, keys and values", found.attention)
        )
        shapes = ", ".join(f"{name} {found.shapes[name]}" for name in (*found.unknown, *which)) or "none"
        raise UnexplainedError(
            f"naming the parameters, which cannot be {what}: {shapes}", unknown=which, lacking="" if which else what
        )
    if attempt.first_step is None:
        attempt.first_step = one_token(attempt, attention, feed_forward, list(norm_readings(found)))
    bases, readings = attempt.first_step
    try:
        bases, readings = zero_scores(attempt, bases, with_same_values(readings, attention))
        return scores(attempt, bases, readings)
    except UnexplainedError as error:
        least = min(cost for _, cost in bases)
        error.so_far = tuple(Explanation(spec, readings[0], cost) for spec, cost in bases if cost == least)
        raise
