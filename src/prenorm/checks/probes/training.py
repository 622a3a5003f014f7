"""Two training steps in float32: does backward run, and does it run again?"""

import re
from typing import Any

import torch
from torch import Tensor

from ..formula.parameters import Raw
from ..subject.learner import Built
from ..subject.raised import LearnerError
from .case import Case, raised

CHANGED = "one of the variables needed for gradient computation has been modified by an inplace operation"
TWICE = "Trying to backward through the graph a second time"


def two_steps(case: Case, built: Built, raw: Raw) -> None:
    """Forward and backward in training mode, twice: state from the first step may break the second."""
    x, cotangent = (case.x(2, case.tokens, dtype=torch.float32) for _ in range(2))
    try:
        built.run(raw, x, training=True)
    except LearnerError as error:
        case.report.errors.setdefault("forward_error", error.error)
        case.report.found("forward_error", f"in training mode it raises {raised(error)}")
        case.report.check("two training steps", False, f"in training mode forward raises {raised(error)}")
        return
    for step in ("first", "second"):
        try:
            built.run(raw, x, cotangent=cotangent, training=True)
        except LearnerError as error:
            backward_raises(case, built, raw, x, cotangent, error, f"in the {step} training step, in float32,")
            case.report.check("two training steps", False, f"backward of the {step} step raises {raised(error)}")
            return
    case.report.check("two training steps", True, "in float32: forward and backward, twice")


def backward_raises(
    case: Case, built: Built, raw: Raw, x: Tensor, cotangent: Tensor, error: LearnerError, when: str
) -> None:
    """Report an error of backward, with the statement that changed a tensor in place if that is the reason."""
    told = error.error
    try:
        built.run(raw, x, cotangent=cotangent, training=True, watch=True)
    except LearnerError as again:
        told = again.error
    message = told["message"].splitlines()[0] if told["message"] else ""
    evidence, mend = f"{when} backward raises {told['type']}: {message[:240]}", "see the error"
    site = _changing(told) if CHANGED in message else None
    if CHANGED in message:
        evidence = f"{when} backward raises: a tensor that it needs was changed in place ({_shape(message) or message})"
        mend = "make a new tensor instead: e = e / total, not e /= total; y = y + f(y), not y += f(y)"
    elif TWICE in message:
        evidence = f"{when} backward raises: it reaches the graph of an earlier step, which has been freed"
        mend = "do not keep tensors with a graph between calls, or from the constructor: compute them again in forward"
    case.report.errors["backward_error"] = told | {"frames": [site] if site else []}
    counts = not (TWICE in message and _has_cache(built))  # it is written for generation, without gradients
    case.report.found("backward_error", evidence, mend=mend, counts=counts)


def _has_cache(built: Built) -> bool:
    """Whether it keeps keys and values for later tokens, as blocks for generation do."""
    names = [one["name"] for one in [*(built.forward or ()), *built.tensors]]
    return any(re.search("cache|start_pos|input_pos|past", name) for name in names)


def _shape(message: str) -> str:
    found = re.search(r"\[[\w.]+ \[[\d, ]*\]\]", message)
    return found.group(0).strip("[]") + "]" if found else ""


def _changing(error: dict[str, Any]) -> dict[str, Any] | None:
    """The last statement that changed a tensor of the shape in the message in place."""
    found = re.search(r"\[[\w.]+ \[([\d, ]*)\]\]", error["message"])
    shape = [int(size) for size in found.group(1).split(",")] if found and found.group(1) else []
    changing = [site for site in error.get("sites", ()) if site["what"].endswith("_") and site["shape"] == shape]
    if not changing:
        return None
    return {name: changing[-1][name] for name in ("file", "line", "function", "code")}
