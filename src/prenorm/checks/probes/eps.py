"""The eps that each norm uses, fitted from vectors so small that it matters."""

import itertools
import math
from dataclasses import dataclass

import torch

from ..formula.spec import Spec
from ..search.switches import Switch
from ..subject.learner import SINGLE, Built
from .case import Case

EPS = 0.05
LARGE = 8.0  # the size of vectors at which no usual eps shows
SMALL = 1e-3  # a factor for queries and keys, with which eps matters to their norms
ROUNDING = 3e-6  # of a sublayer's output, which is about 1, if the norm computes in float32
LARGEST_EPS = 1e-3  # of a block without an eps argument: that of Keras; most are 1e-12 to 1e-5
KNOWN_EPS = (0.0, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 2e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def eps(case: Case) -> None:
    """Fit the eps that each norm uses, from vectors so small that it matters."""
    assert case.explanation is not None
    spec = case.explanation.spec
    if "rms" not in (spec.norm1, spec.norm2) and "layer" not in (spec.norm1, spec.norm2):
        case.report.skip("eps", "there is no norm that could use it")
        case.size = LARGE
        return
    if spec.mask not in ("none", "causal"):
        case.report.skip("eps", "a single token attends to nothing")
        return
    _of_the_block(case)
    _of_queries_and_keys(case)


def _of_the_block(case: Case) -> None:
    assert case.explanation is not None
    takes = case.learner.takes("eps")
    default = case.learner.default("eps")
    default = float(default) if isinstance(default, float) else 1e-6
    if not takes:
        _eps_without_argument(case)
        return
    passed = case.arguments.get("eps", 1e-6)
    large, small = _fit(case, case.wide(eps=EPS), EPS, 0.2), _fit(case, case.wide(), passed, 1e-3)
    _keep(case, small)
    case.report.conventions["eps"] = default
    problems = []
    for name in _fitted_norms(case.explanation.spec):
        at_large, at_small = large.get(name), small.get(name)
        if at_large is None or at_small is None:
            problems.append(f"no eps explains what {name} does to small vectors")
            case.report.found("wrong_eps", problems[-1])
            continue
        if at_large.place != "under" and at_large.eps > 1e-9:
            problems.append(f"{name} divides by {PLACES[at_large.place]}")
            case.report.found("eps_outside_sqrt", f"with eps={EPS:g} {problems[-1]}", counts=case.target.llama_design)
        if math.isclose(at_large.eps, EPS) and math.isclose(at_small.eps, passed):
            continue
        evidence = f"{name} uses {at_large.eps:g} for eps={EPS:g}, and {at_small.eps:g} for eps={passed:g}"
        problems.append(evidence)
        if math.isclose(at_large.eps, at_small.eps, rel_tol=0.01, abs_tol=1e-9):
            case.report.found("eps_ignored", evidence)
            if at_small.eps != default and at_small.eps > 1e-9:
                case.report.found("wrong_eps", evidence)
        else:
            case.report.found("wrong_eps", evidence)
    case.report.check("eps", not problems, "; ".join(problems) or f"small vectors, eps={EPS:g} and {passed:g}")


PLACES = {
    "outside": "sqrt(mean(x^2)) + eps",
    "clamp": "max(sqrt(mean(x^2)), eps)",
    "clamp_square": "sqrt(max(mean(x^2), eps))",
}


@dataclass(frozen=True, slots=True)
class _Fitted:
    eps: float
    place: str


def _fitted_norms(spec: Spec) -> list[str]:
    return [name for name, kind in (("norm1", spec.norm1), ("norm2", spec.norm2)) if kind in ("rms", "layer")]


def _eps_without_argument(case: Case) -> None:
    assert case.built is not None
    assert case.explanation is not None
    fitted = _fit(case, case.wide(), 1e-6, 1e-3)
    _keep(case, fitted)
    x = case.x(2, case.tokens)
    ys = [case.built.run(case.raw, one).y for one in (x * 0, x)]
    finite = bool(torch.isfinite(ys[0]).all() or not torch.isfinite(ys[1]).all())  # NaN for all x has another reason
    if not finite:
        norms = " or ".join(_fitted_norms(case.explanation.spec))
        evidence = f"a vector of zeros gives NaN: no eps in {norms}"
        case.report.found("eps_ignored", evidence, mend="x / sqrt(mean(x^2) + eps)")
    for name, one in fitted.items():
        case.report.conventions["eps"] = one.eps
        if one.place != "under" and one.eps > 1e-9:
            case.report.found(
                "eps_outside_sqrt", f"{name} divides by {PLACES[one.place]}", counts=case.target.llama_design
            )
        if one.eps > LARGEST_EPS:
            case.report.found("wrong_eps", f"{name} uses {one.eps:g}; 1e-6 or 1e-5 is usual")
    case.report.check("eps", finite, "it has no eps argument; small vectors and zeros were tried")


def _of_queries_and_keys(case: Case) -> None:
    """Store the eps of the norms of queries and keys, if it is another: that of a library's norm, or none."""
    assert case.built is not None
    assert case.explanation is not None
    spec, reading = case.explanation.spec, case.explanation.reading
    if spec.qk_norm == "none":
        return
    raw, x = case.built.draw(case.generator, case.dtype), case.x(2, case.tokens)
    for role in ("q", "q_bias", "k", "k_bias"):
        if role in reading:
            reading[role].write(raw, reading[role].read(raw) * SMALL)
    y = case.built.run(raw, x).y
    gaps: dict[float | None, float] = {}
    for one in (spec.qk_eps, None, *KNOWN_EPS):
        expected = case.expected(raw, x, qk_eps=one)
        if case.agrees(y, expected, x):
            gaps[one] = float((y - expected).abs().max())
    if not gaps:
        return
    best = next(one for one, gap in gaps.items() if gap <= 2 * min(gaps.values()) + ROUNDING)
    case.explanation = case.explanation.changed(qk_eps=best)
    if best is not None and best != spec.qk_eps:
        case.report.conventions["qk_norm_eps"] = best


def _keep(case: Case, fitted: dict[str, _Fitted]) -> None:
    """Store the eps that the block uses in the explanation, so that later checks expect it."""
    assert case.explanation is not None
    case.explanation = case.explanation.changed(**_changes(fitted))


def _changes(fitted: dict[str, _Fitted]) -> Switch:
    eps: Switch = {f"eps{name[-1]}": one.eps for name, one in fitted.items()}
    return eps | {f"eps_place{name[-1]}": one.place for name, one in fitted.items()}


def _fit(case: Case, built: Built, passed: float, size: float) -> dict[str, _Fitted]:
    """The eps of each norm that explains the outputs for single tokens of about this size, if one does."""
    assert case.explanation is not None
    candidates = dict.fromkeys(
        [passed, *KNOWN_EPS, passed**2, passed**0.5, 1 / passed, 1 - passed]
        + [passed * factor for factor in (0.5, 2.0, 4.0, 10.0, 100.0, 1000.0, 0.1, 0.01, 0.001, 32.0, 1 / 32)]
        + [passed + known for known in KNOWN_EPS]
    )
    sizes = torch.logspace(-1, 1, SINGLE, dtype=case.dtype)[:, None, None] * size
    found: dict[str, _Fitted] = {}
    spec = case.explanation.spec
    joint = spec.post or spec.residual1 != "input" or spec.residual2 != "hidden"  # then outputs depend on both norms
    for name, muted in (("norm1", "down"), ("norm2", "v")):  # one sublayer at a time
        raw, x = built.draw(case.generator, case.dtype), case.single(SINGLE) * sizes
        reads_values = name == "norm2" and spec.residual1 == "none" and not spec.post  # of nothing it makes nothing
        for role in (muted, f"{muted}_bias", *(("o_bias",) if muted == "v" else ())):
            piece = case.explanation.reading.get(role)
            if piece is not None:
                piece.write(raw, piece.read(raw) * size if reads_values and role == "v" else torch.zeros(()))
        y = built.run(raw, x).y
        gaps: dict[tuple[float, str], float] = {}
        for place, eps in itertools.product(("under", "outside", "clamp", "clamp_square"), candidates):
            numbers = "12" if joint and not (reads_values and "norm1" in found) else name[-1]
            changes = _changes(found) | {f"eps{n}": eps for n in numbers} | {f"eps_place{n}": place for n in numbers}
            expected = case.expected(raw, x, **changes)
            if case.agrees(y, expected, x):
                gaps[eps, place] = float((y - expected).abs().max())
        if gaps:
            near = 2 * min(gaps.values()) + ROUNDING  # the first of those that fit as well as the best
            found[name] = _Fitted(*next(key for key, gap in gaps.items() if gap <= near))
    return found
