"""Explains a block's numbers, and reports what the explanation says."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from ..formula.choices import is_choice, is_free
from ..search.explain import explain
from ..search.explanation import Explanation, UnexplainedError
from ..search.sizes import fitting_sizes
from ..subject.child.meanings import meaning_of
from ..subject.learner import TABLES, Built
from ..subject.raised import LearnerError
from .case import ROUNDED_ANGLES, Case
from .diagnosis import conventions, faults

OF_A_CACHE = re.compile(r"cache|past|(^|[._])(k|v|keys|values)(_|$)")
"""Tensors of keys and values that a block keeps: they are as wide as a head, and are no tables of angles."""

WHOLE = "a block has attention and a feed-forward: check the class that holds both"


def numbers(case: Case) -> None:
    """Explain the outputs, and report what the explanation says. It is stored in the case."""
    assert case.built is not None
    try:
        case.explanation = _explained(case, case.built)
    except UnexplainedError as error:
        case.report.check("the numbers", False, f"no known fault explains them at: {error.step}")
        odd = {"batch_coupled", "not_deterministic", "dropout_in_eval", "retains_state"} & set(case.report.findings)
        if not odd:
            _report_unexplained(case, error)
        return
    case.explanation = _with_pairing(case, case.explanation)
    if case.explanation.spec.loses_angles:
        case.tolerance = max(case.tolerance, ROUNDED_ANGLES)
    said = faults(case.explanation)
    for id, evidence in said.items():
        counts = _counts(case, id, case.explanation)
        if id == "rope_bf16_tables" and case.learner.recipe.call.uses & {"rows", *TABLES}:
            counts = False  # the tables are handed in
        if id == "missing_rope" and not case.target.llama_design:
            counts = _means_to_rotate(case)  # learned positions, or those of attention biases, are added by the model
        if id == "shared_projection" and (unused := _unused(case, case.explanation)):
            evidence, counts = f"{evidence} (not used: {', '.join(unused)})", True
        if id == "wrong_head_split" and _has_heads_of_its_own(case):
            evidence += f", or its number of heads, which is no argument, is not {case.sizes.num_heads}"
        case.report.found(id, f"the outputs are those of a block in which {evidence}", counts=counts)
    case.report.check(
        "the numbers",
        not case.report.faults() & said.keys(),
        "one token, zero scores and random inputs agree with the formula"
        if not said
        else "they agree with the formula if: " + "; ".join(said.values()),
    )
    case.report.conventions.update(conventions(case.explanation))


def _report_unexplained(case: Case, error: UnexplainedError) -> None:
    """Report the faults that are known although not all numbers are explained; if there are none, that."""
    for id, evidence in error.faults:
        case.report.found(id, evidence)
    if error.faults:
        return
    if error.unknown:
        evidence = f"at {error.step}; not recognised: {', '.join(error.unknown[:5])}"
        case.report.found("unreadable", evidence, counts=False)
        return
    if error.lacking and not case.learner.recipe.build.not_understood:
        evidence = f"none of its parameters can be {error.lacking}"
        case.report.found("unreadable", evidence, counts=False, mend=WHOLE)
        return
    if depth := _number_of_layers(case):
        evidence = (
            f"at {error.step}; {case.learner.made['name']} is a stack of layers ({depth}=1), and what it computes "
            "before and after them is no part of a block: check the class of one layer"
        )
        case.report.found("unreadable", evidence, counts=False)
        return
    partly = [{id: evidence for id, evidence in faults(one).items() if _counts(case, id, one)} for one in error.so_far]
    common = [id for id in partly[0] if all(id in one for one in partly)] if partly else []
    for id in common:
        case.report.found(id, f"{partly[0][id]}; not all other numbers are explained, at {error.step}")
    build = case.learner.recipe.build
    if not common and _has_heads_of_its_own(case):
        evidence = f"at {error.step}; its number of heads is no argument: it may be another than {case.sizes.num_heads}"
        case.report.found("arguments_unknown", evidence, counts=False)
    elif not common and (names := build.not_understood):
        evidence = (
            f"at {error.step}; {', '.join(names)} had to be guessed; "
            f'correct the line that builds it: --build "{build.written()}"'
        )
        case.report.found("arguments_unknown", evidence, counts=False)
    elif not common:  # of a search that ended early, nothing is known
        case.report.found("unexplained", f"at {error.step}", counts=error.complete)


def _number_of_layers(case: Case) -> str:
    """The argument that says of how many layers it is made, where all its matrices are in numbered ones; else empty."""
    assert case.built is not None
    matrices = [one["name"] for one in case.built.parameters if len(one["shape"]) > 1]
    if not all(any(map(str.isdigit, name.split("."))) for name in matrices):
        return ""  # a block may scale its first weights by the number of layers
    required = [one["name"] for one in case.learner.made["constructor"] or () if one["required"]]
    return next((name for name in required if meaning_of(name, loosely=True) == "layers"), "")


def _has_heads_of_its_own(case: Case) -> bool:
    """Whether nothing says the number of heads to it: neither an argument nor a configuration."""
    recipe = case.learner.recipe
    used = recipe.build.uses | recipe.call.uses
    return recipe.build.text is None and not used & {"num_heads", "num_kv_heads", "head_dim", "config"}


def _counts(case: Case, id: str, explanation: Explanation) -> bool:
    spec, reading = explanation.spec, explanation.reading
    if id == "wrong_head_split" and _has_heads_of_its_own(case):
        return False
    return not is_free(id, reading) and (case.target.llama_design or not is_choice(id, spec, reading))


def _unused(case: Case, explanation: Explanation) -> list[str]:
    """The matrices that the explanation has no use for."""
    assert case.built is not None
    used = {name for piece in explanation.reading.values() for name in piece.parameters}
    return [one["name"] for one in case.built.parameters if _is_matrix(one["shape"]) and one["name"] not in used]


def _with_pairing(case: Case, explanation: Explanation) -> Explanation:
    """The explanation with the pairing of larger heads, if so few dimensions are rotated that both pairings agree."""
    spec = explanation.spec
    if not (spec.rope_on and spec.rope_axis == "head") or int(case.sizes.head_dim * spec.rotary_fraction) > 2:
        return explanation
    sizes = dataclasses.replace(case.sizes, d_model=2 * case.sizes.d_model, d_ff=2 * case.sizes.d_ff)
    with contextlib.suppress(LearnerError, UnexplainedError):
        larger = explain(case.wide(sizes=sizes), case.generator, work=case.work, most=1, **case.precision)
        if larger.spec.rotary_fraction == spec.rotary_fraction:
            return explanation.changed(pairing=larger.spec.pairing)
    return dataclasses.replace(explanation, pairing_seen=False)


def _means_to_rotate(case: Case) -> bool:
    """Whether anything suggests that the block should rotate: an argument, a table, a sine."""
    assert case.built is not None
    if case.learner.takes("rope_theta"):
        return True
    assert case.explanation is not None
    spec, reading = case.explanation.spec, case.explanation.reading
    if case.built.positions_name is not None and not (spec.norm1 == "layer" and "gate" not in reading):
        return True  # in GPT-2's design the model adds positions to its embeddings, and hands the numbers on (OPT)
    halves = {case.sizes.head_dim, case.sizes.head_dim // 2}
    tables = [
        one
        for one in case.built.tensors
        if len(one["shape"]) >= 2 and one["shape"][-1] in halves and not OF_A_CACHE.search(one["name"])
    ]
    turning = case.built.run(case.raw, case.x(2, case.tokens), trace=True).operations & {"cos", "sin", "polar"}
    return bool(tables) or bool(turning)


def _explained(case: Case, built: Built) -> Explanation:
    """The explanation; if weights seem to be missing, tensors that are not parameters are tried as weights."""
    odd = {"batch_coupled", "retains_state"} & set(case.report.findings)  # then no formula has to explain the numbers
    options: dict[str, Any] = {**case.precision, "most": 1 if odd else 2}
    problem: UnexplainedError | None = None
    explanation = None
    unknown = fitting_sizes(built)[0].unknown
    adapters = [one["name"] for one in built.parameters if one["name"] in unknown and _is_matrix(one["shape"])]
    ways = dict.fromkeys([frozenset[str](), frozenset(adapters)]) if unknown else {}
    shares = case.work.shares(len(ways) + 1 + bool(built.tensors_as_weights()))
    for muted in ways:
        with contextlib.suppress(UnexplainedError, LearnerError):
            return _set_aside(case, unknown, muted, options | {"work": next(shares), "most": 1})
    try:
        explanation = explain(built, case.generator, work=next(shares), **options)
        lacking = {"norm_weight_missing", "missing_output_projection"} & faults(explanation).keys()
        if not lacking:
            return explanation
    except UnexplainedError as error:
        problem = error
    if built.take_plain_weights():
        try:
            other = explain(built, case.generator, work=next(shares), **options)
            if explanation is None or other.cost <= explanation.cost:
                case.raw = built.draw(case.generator, case.dtype)  # with values for them
                return other
        except UnexplainedError as error:
            if problem is not None:
                problem.complete &= error.complete
        except LearnerError:
            pass
        built.plain_weights = []
    if explanation is not None:
        return explanation
    assert problem is not None
    raise problem


def _is_matrix(shape: Sequence[int]) -> bool:
    return math.prod(shape) > max(shape, default=0)


def _set_aside(case: Case, unknown: tuple[str, ...], muted: frozenset[str], options: dict[str, Any]) -> Explanation:
    """The explanation with unknown parameters as they were built, or at zero, where adapters add nothing."""
    kept = case.wide()
    kept.kept, kept.muted = frozenset(unknown) - muted, muted
    explanation = explain(kept, case.generator, **options)
    case.built, case.raw = kept, kept.draw(case.generator, case.dtype)
    for said, names in (("left_as_built", kept.kept), ("taken_as_zero", muted)):
        if names:
            case.report.conventions[said] = sorted(names)
    vectors = [one["name"] for one in kept.parameters if one["name"] in unknown and not _is_matrix(one["shape"])]
    if vectors and case.target.biases is not None:
        case.report.found("unexpected_bias", f"{', '.join(vectors)} may be added to something")
    return explanation
