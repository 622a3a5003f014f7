"""Whether a call without optional arguments runs, where the source makes the values that nobody passed.

A default None for which the source makes nothing is a required argument under another name, and a convention.
"""

from dataclasses import replace

import torch

from ..source.defaults import default_of
from ..source.misspelt import misspelt
from ..source.text import Text
from ..subject.learner import Built
from ..subject.raised import LearnerError
from ..subject.recipe import Line, Recipe
from .case import MAX_SEQ_LEN, Case, raised

SHAPES = ((2, 7), (3, MAX_SEQ_LEN))
"""Batches and lengths; one sequence alone is broadcast against anything."""
OF_VALUES = ("RuntimeError", "IndexError")
"""What torch raises for a tensor that does not fit. Other errors may mean that an argument is required in truth."""


def defaults(case: Case, built: Built, text: Text, texts: str) -> None:
    """A call that raises by itself, where the same call runs with the argument.

    It raises for its own default at every length, or for a name that is nowhere defined. texts: the source of the
    block and of the files next to it.
    """
    build, call = case.learner.recipe.build, case.learner.recipe.call
    required = {one["name"] for one in built.forward or () if one["required"]}
    optional = {one.name for one in call.arguments if one.needed and one.name and one.name not in required}
    if call.text is not None or build.not_understood or not optional:
        return
    plain = replace(call, arguments=tuple(one for one in call.arguments if one.name not in optional))
    first = _raising(case, plain, SHAPES[0])
    if first is None:
        return
    raises = f"{plain.written()} raises {raised(first)}"
    if misspelt(first.error, texts):
        _report(case, first, f"{raises}; {call.written()} runs, but without that argument nothing can define the name")
        return
    if not _is_of_a_value(first):
        return
    line = default_of(text.source, optional, text.numbers(first.error))
    if line is None or (other := _raising(case, plain, SHAPES[1])) is None or not _is_of_a_value(other):
        return
    batch, length = SHAPES[0]
    evidence = (
        f"{raises} for {batch} sequences of {length} tokens, and so at other lengths; "
        f"{call.written()} runs: the default that the source makes does not fit"
    )
    first.error["frames"] = [text.frame(line)]
    _report(case, first, evidence)


def _report(case: Case, error: LearnerError, evidence: str) -> None:
    case.report.errors.setdefault("forward_error", error.error)
    case.report.found("forward_error", evidence)
    case.report.check("defaults of forward", False, evidence)


def _is_of_a_value(error: LearnerError) -> bool:
    message = error.error["message"]
    of_this_machine = any(word in message for word in ("CUDA", "cuda", "device", "NoneType"))
    return error.error["type"] in OF_VALUES and not of_this_machine


def _raising(case: Case, line: Line, shape: tuple[int, int]) -> LearnerError | None:
    """The error of a new block that is called by this line."""
    before = case.learner.recipe
    case.learner.recipe = Recipe(before.build, line)
    try:
        case.build().run(None, case.x(*shape, dtype=torch.float32))
    except LearnerError as error:
        return error
    finally:
        case.learner.recipe = before
    return None
