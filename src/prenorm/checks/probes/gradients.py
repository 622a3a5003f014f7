"""The block's gradients against those of the formula that explains its outputs; without one, whether there are any."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formula.parameters import Piece, Raw
from ..search.explanation import Explanation
from ..subject.raised import LearnerError
from .case import Case, raised
from .training import backward_raises

DRAWS = 2
"""Gradients are wrong if they are for each of so many inputs: rounding may be amplified by chance, but hardly twice."""
NOT_JUDGED = {"unreadable", "arguments_unknown", "unexplained"}
NOTHING = 1e-2  # of the tolerance, as a share of the largest gradient


class _EndedError(Exception):
    """Gradients cannot be compared, and the report says why."""


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The gradients of one input, given by the block and expected by the formula; wrong: the names that differ."""

    raw: Raw
    x: Tensor
    cotangent: Tensor
    given: dict[str, Tensor | None]
    expected: dict[str, Tensor | None]
    floor: float
    given_by_parameter: Mapping[str, Tensor | None]
    expected_by_parameter: Mapping[str, Tensor | None]
    wrong: list[str]


def gradients(case: Case) -> None:
    """Send a random cotangent back through the block and through the formula."""
    assert case.explanation is not None
    if case.for_inference:
        case.report.skip("gradients", "its matrices are frozen, as in code for inference")
        return
    try:
        for _ in range(DRAWS):
            compared = _compare(case, case.explanation)
            if not compared.wrong:
                break
    except _EndedError:
        return
    agree = "those of x and every weight agree with autograd"
    case.report.check(
        "gradients", not compared.wrong, f"wrong for {_list(compared.wrong)}" if compared.wrong else agree
    )
    if compared.wrong:
        _name(case, case.explanation, compared)


def without_explanation(case: Case) -> None:
    """The weights that no gradient reaches, of a block whose weights are known and whose numbers nothing explains.

    Of one that could not be judged (which does not count), a weight may be for other calls: an expert's, for example.
    """
    assert case.built is not None
    if case.for_inference or case.switched_off or NOT_JUDGED & case.report.choices:
        return
    try:
        given = case.built.run(case.raw, case.x(2, case.tokens), cotangent=case.x(2, case.tokens)).gradients
    except LearnerError:
        return  # the check of training steps reports it
    trained = [one["name"] for one in case.built.parameters if one["requires_grad"]]
    missing = [name for name in trained if name in given and given[name] is None]
    evidence = f"no gradient reaches {_list(missing)}"
    if missing:
        case.report.found("gradient_missing", evidence)
    case.report.check("gradients", not missing, evidence if missing else "every weight has one; nothing more is known")


def _compare(case: Case, explanation: Explanation) -> _Comparison:
    """The gradients of a new input. Raises _EndedError if there are none."""
    assert case.built is not None
    raw, x, cotangent = case.built.draw(case.generator, case.dtype), case.x(2, case.tokens), case.x(2, case.tokens)
    try:
        answer = case.built.run(raw, x, cotangent=cotangent)
    except LearnerError as error:
        case.report.check("gradients", False, f"backward raises {raised(error)}")
        if not {"modifies_input", "backward_error"} & set(case.report.findings):
            backward_raises(case, case.built, raw, x, cotangent, error, "")
        raise _EndedError from None
    if case.switched_off and not answer.requires_grad:
        case.report.conventions["gradients"] = "turned off by a decorator of forward, as in code for inference"
        case.report.skip("gradients", "forward turns them off by a decorator, as in code for inference")
        raise _EndedError
    if not torch.isfinite(answer.y).all():
        case.report.skip("gradients", "the output is not finite")
        raise _EndedError
    full, by_parameter = _gradients(explanation, raw, x, cotangent, case.sizes.num_heads)
    scale = max((float(value.abs().max()) for value in full.values() if value is not None), default=0.0)
    # Below the floor, gradients are rounding errors, such as those of a key bias, which the softmax cancels.
    floor = scale * case.tolerance * NOTHING
    given = _cut(_by_weight(explanation, answer.gradients) | {"x": answer.x_gradient}, floor)
    expected = _cut(full, floor)
    wrong = [name for name, value in expected.items() if not _alike(given.get(name), value, case.tolerance)]
    return _Comparison(raw, x, cotangent, given, expected, floor, answer.gradients, by_parameter, wrong)


def _name(case: Case, explanation: Explanation, compared: _Comparison) -> None:
    """Report the fault: a residual that is detached, or gradients that are missing or wrong."""
    given, expected, wrong = compared.given, compared.expected, compared.wrong
    for detached in (("1",), ("2",), ("1", "2")):
        variant = explanation.changed(detached=detached)
        other, _ = _gradients(variant, compared.raw, compared.x, compared.cotangent, case.sizes.num_heads)
        if all(_alike(given.get(name), value, case.tolerance) for name, value in _cut(other, compared.floor).items()):
            which = " and ".join({"1": "first", "2": "second"}[one] for one in detached)
            case.report.found(
                "residual_detached", f"the gradients are those of a block whose {which} residual is detached"
            )
            return
    # If only a part of a parameter has no gradient, the gradient of the whole is wrong, not missing.
    absent = {
        name
        for name, value in compared.expected_by_parameter.items()
        if _is_there(value) and not _is_there(compared.given_by_parameter.get(name))
    }
    held = {_label(name, piece): {*piece.parameters} for name, piece in explanation.reading.items()}
    missing = [name for name in wrong if (held[name] & absent if name in held else not _is_there(given.get(name)))]
    if missing:
        case.report.found("gradient_missing", f"no gradient reaches {_list(missing)}")
        return
    gaps = {name: _gap(given[name], expected[name]) if _is_there(given[name]) else 1.0 for name in wrong}
    worst = max(gaps, key=lambda name: gaps[name])
    case.report.found(
        "gradient_wrong",
        f"wrong for {_list(wrong)}; the largest error is {gaps[worst]:.1%} of the largest entry, for {worst}",
    )


def _cut(gradients: Mapping[str, Tensor | None], floor: float) -> dict[str, Tensor | None]:
    """The gradients, with zeros for those of which no entry is above the floor."""
    return {
        name: torch.zeros_like(value) if value is not None and value.abs().max() <= floor else value  # NaN is above it
        for name, value in gradients.items()
    }


def _label(name: str, piece: Piece) -> str:
    return f"{name} ({piece.parameters[0]})"


def _by_weight(explanation: Explanation, gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The gradient of every weight, taken from those of the parameters that hold it."""
    found: dict[str, Tensor | None] = {}
    for name, piece in explanation.reading.items():
        parts = {one: gradients.get(one) for one in piece.parameters}
        there = {one: value for one, value in parts.items() if value is not None}
        found[_label(name, piece)] = piece.read(there) if len(there) == len(parts) else None
    return found


def _gradients(
    explanation: Explanation, raw: Raw, x: Tensor, cotangent: Tensor, num_heads: int
) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """The gradients of x and of every weight; and those of the learner's parameters."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in raw.items()}
    leaf = x.clone().requires_grad_()
    y = explanation.forward(leaves, leaf, torch.arange(x.shape[-2])[None], num_heads)
    (y * cotangent).sum().backward()  # y.backward(cotangent) would import sympy first, for a second
    of_parameters = {name: value.grad for name, value in leaves.items()}
    return _by_weight(explanation, of_parameters) | {"x": leaf.grad}, of_parameters


def _is_there(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def _alike(given: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
    if not _is_there(given) or not _is_there(expected):
        return _is_there(given) == _is_there(expected)
    return _gap(given, expected) <= 10 * tolerance


def _gap(given: Tensor | None, expected: Tensor | None) -> float:
    assert given is not None
    assert expected is not None
    gap = (given.to(expected.dtype) - expected).abs().max() / expected.abs().max()
    return float(gap.nan_to_num(float("inf")))


def _list(names: list[str]) -> str:
    shown = names[:4]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
