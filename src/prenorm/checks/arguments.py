"""Whether what a caller hands in has its effect: eps, rope_theta, positions, key-value heads, causal, and masks."""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .case import MAX_SEQ_LEN, Case, raised
from .explain import Switch, UnexplainedError, explain
from .learner import Answer, Built, LearnerError
from .reading import Raw, Sizes
from .reference import Spec

TOKENS = 7
EPS = 0.05
ROUNDING = 3e-6  # of a sublayer's output, some 1, where the norm works in float32
LARGEST_EPS = 1e-4  # of a block that takes no eps; the field's are 1e-12 to 1e-5
KNOWN_EPS = (0.0, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 2e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def eps(case: Case) -> None:
    """Fit the eps that each norm works with, from vectors so small that it counts."""
    assert case.explanation is not None
    spec = case.explanation.spec
    if "rms" not in (spec.norm1, spec.norm2) and "layer" not in (spec.norm1, spec.norm2):
        case.report.skip("eps", "there is no norm to which it belongs")
        return
    if spec.mask not in ("none", "causal"):
        case.report.skip("eps", "a token by itself sees nothing")
        return
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
    for name in _fitted_norms(spec):
        at_large, at_small = large.get(name), small.get(name)
        if at_large is None or at_small is None:
            problems.append(f"what {name} does to small vectors fits no eps")
            case.report.found("wrong_eps", problems[-1])
            continue
        if at_large.place != "under" and at_large.eps > 1e-9:
            problems.append(f"{name} divides by {PLACES[at_large.place]}")
            case.report.found("eps_outside_sqrt", f"with eps={EPS:g} {problems[-1]}")
        if math.isclose(at_large.eps, EPS) and math.isclose(at_small.eps, passed):
            continue
        evidence = f"{name} works with {at_large.eps:g} given {EPS:g}, and with {at_small.eps:g} given {passed:g}"
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
    zeros = case.x(1, 2) * 0
    finite = bool(torch.isfinite(case.built.run(case.raw, zeros).y).all())
    if not finite:
        case.report.found("eps_ignored", "a vector of zeros gives NaN: there is no eps")
    for name, one in fitted.items():
        case.report.conventions["eps"] = one.eps
        if one.place != "under" and one.eps > 1e-9:
            case.report.found("eps_outside_sqrt", f"{name} divides by {PLACES[one.place]}")
        if one.eps > LARGEST_EPS:
            case.report.found("wrong_eps", f"{name} works with {one.eps:g}; 1e-6 or 1e-5 is usual")
    case.report.check("eps", finite, "it takes no eps; small vectors and zeros were tried")


def _keep(case: Case, fitted: "dict[str, _Fitted]") -> None:
    """Put the eps that the block works with into the explanation, so that it plays no part in what follows."""
    assert case.explanation is not None
    changes: Switch = {}
    for name, one in fitted.items():
        changes |= {f"eps{name[-1]}": one.eps, f"eps_place{name[-1]}": one.place}
    spec = dataclasses.replace(case.explanation.spec, **changes)
    case.explanation = dataclasses.replace(case.explanation, spec=spec)


def _fit(case: Case, built: Built, passed: float, size: float) -> dict[str, _Fitted]:
    """The eps of each norm that gives the outputs for single tokens of about this size, where one does."""
    assert case.explanation is not None
    candidates = dict.fromkeys(
        [passed, *KNOWN_EPS, passed**2, passed**0.5, 1 / passed, 1 - passed]
        + [passed * factor for factor in (0.5, 2.0, 4.0, 10.0, 100.0, 1000.0, 0.1, 0.01, 0.001, 32.0, 1 / 32)]
        + [passed + known for known in KNOWN_EPS]
    )
    sizes = torch.tensor([0.1, 0.3, 1.0, 1.0, 3.0, 10.0], dtype=case.dtype)[:, None, None] * size
    found: dict[str, _Fitted] = {}
    spec = case.explanation.spec
    joint = spec.post or spec.residual1 != "input" or spec.residual2 != "hidden"  # then outputs depend on both norms
    for name, muted in (("norm1", "down"), ("norm2", "v")):  # one sublayer at a time
        raw, x = built.draw(case.generator, case.dtype), case.x(6, 1) * sizes
        for role in (muted, f"{muted}_bias", *(("o_bias",) if muted == "v" else ())):
            piece = case.explanation.reading.get(role)
            if piece is not None:
                piece.write(raw, torch.zeros(()))
        y = built.run(raw, x).y
        gaps: dict[tuple[float, str], float] = {}
        for place, eps in itertools.product(("under", "outside", "clamp", "clamp_square"), candidates):
            numbers = "12" if joint else name[-1]
            changes: Switch = {f"eps{n}": eps for n in numbers} | {f"eps_place{n}": place for n in numbers}
            expected = _with(case, raw, x, **changes)
            if case.agrees(y, expected, x):
                gaps[eps, place] = float((y - expected).abs().max())
        if gaps:
            near = 2 * min(gaps.values()) + ROUNDING  # of those that fit as well as the best, the first
            found[name] = _Fitted(*next(key for key, gap in gaps.items() if gap <= near))
    return found


def rope_theta(case: Case) -> None:
    """Another theta."""
    if not case.learner.takes("rope_theta"):
        case.report.skip("rope_theta", "the constructor takes none")
        return
    if not _rotates(case):
        case.report.skip("rope_theta", "nothing is rotated")
        return
    theta = 300.0
    raw, x = case.raw, case.x(2, TOKENS)
    y = case.wide(rope_theta=theta).run(raw, x).y
    good = case.agrees(y, _with(case, raw, x, theta=theta), x)
    if not good and case.agrees(y, case.expected(raw, x), x):
        case.report.found("rope_theta_ignored", f"rope_theta={theta:g} gives the numbers of {case_theta(case):g}")
    elif not good:
        case.report.found("rope_wrong_frequency", f"with rope_theta={theta:g} the frequencies are others")
    case.report.check("rope_theta", good, f"{theta:g} against {case_theta(case):g}")


def case_theta(case: Case) -> float:
    """The base that the explanation works with."""
    assert case.explanation is not None
    return case.explanation.spec.theta


def _with(case: Case, raw: Raw, x: Tensor, positions: Tensor | None = None, **changes: object) -> Tensor:
    """What the explanation gives with some of its spec changed."""
    assert case.explanation is not None
    spec = dataclasses.replace(case.explanation.spec, **changes)  # type: ignore[arg-type]
    variant = dataclasses.replace(case.explanation, spec=spec)
    positions = torch.arange(x.shape[-2]) if positions is None else positions
    with torch.no_grad():
        return variant.forward(raw, x, torch.atleast_2d(positions), case.sizes.num_heads)


def _rotates(case: Case) -> bool:
    assert case.explanation is not None
    return bool(case.explanation.spec.rope_on) or case.explanation.spec.rope_input != "no"


def token_positions(case: Case) -> None:
    """Positions with gaps, out of order, other ones in each sequence of the batch."""
    built, name = case.built, "token_positions"
    assert built is not None
    if built.positions_name is None:
        if case.target.needs_positions:
            case.report.found("token_positions_ignored", "forward takes no positions: forward(x, token_positions=None)")
        case.report.skip(name, "forward takes none")
        return
    if not _rotates(case):
        case.report.skip(name, "nothing is rotated")
        return
    limit = int(case.arguments.get("max_seq_len", MAX_SEQ_LEN)) - ("positions_off_by_one" in case.report.findings)
    draws = torch.stack([torch.randperm(limit, generator=case.generator)[:TOKENS] for _ in range(2)])
    x = case.x(2, TOKENS)
    used, answer = _run_at(case, built, x, draws)
    if answer is None:
        return
    good = case.agrees(answer.y, case.expected(case.raw, x, used), x)
    if not good and case.agrees(answer.y, case.expected(case.raw, x), x):
        case.report.found("token_positions_ignored", f"positions {used[0].tolist()} give the numbers of 0, 1, 2, ...")
    elif not good and used.dim() == 2 and case.agrees(answer.y, case.expected(case.raw, x, used[:1]), x):
        case.report.found("token_positions_ignored", "every sequence gets the positions of the first one")
    elif not good:
        shifted = {shift: _with(case, case.raw, x, used, key_shift=shift) for shift in ("the next", "the one before")}
        if any(case.agrees(answer.y, value, x) for value in shifted.values()):
            case.report.found("positions_off_by_one", "with positions handed in, keys are one place beside")
        else:
            case.report.puzzled(f"with token_positions {used[0].tolist()} the numbers are others")
    case.report.check(name, good, f"with gaps and out of order, as {tuple(used.shape)}")


def _run_at(case: Case, built: Built, x: Tensor, positions: Tensor) -> tuple[Tensor, Answer | None]:
    """The call, with positions (batch, seq), or where that raises (seq,)."""
    try:
        return positions, built.run(case.raw, x, positions=positions)
    except LearnerError as first:
        try:
            return positions[0], built.run(case.raw, x, positions=positions[0])
        except LearnerError:
            limit = positions.max()
            case.report.errors["forward_error"] = first.error
            case.report.found("forward_error", f"with token_positions up to {limit} it raises {raised(first)}")
            case.report.check("token_positions", False, f"raises {raised(first)}")
            return positions, None


def grouped_heads(case: Case) -> None:
    """Fewer key-value heads than heads."""
    if not case.learner.takes("num_kv_heads"):
        case.report.skip("grouped heads", "the constructor takes no number of key-value heads")
        return
    sizes = Sizes(num_kv_heads=2)
    try:
        built = case.wide(sizes=sizes)
        explanation = explain(built, case.generator, tolerance=case.tolerance, dtype=case.dtype)
    except UnexplainedError as error:
        case.report.puzzled(f"with 2 key-value heads of {sizes.num_heads}, at {error.step}")
        case.report.check("grouped heads", False, "with 2 key-value heads no known fault explains the numbers")
        return
    except LearnerError as error:
        case.report.errors.setdefault(f"{error.stage}_error", error.error)
        case.report.found(
            f"{error.stage}_error", f"with 2 key-value heads of {sizes.num_heads} it raises {raised(error)}"
        )
        case.report.check("grouped heads", False, raised(error))
        return
    tiled = explanation.spec.tiled
    case.report.conventions["grouped_heads"] = "tiled" if tiled else "repeated"
    if tiled and case.target.tiled is False:
        case.report.found("gqa_tiled_instead_of_repeated", "query heads 0 and 1 read different key-value heads of 2")
    case.report.check("grouped heads", True, "tiled: h mod groups" if tiled else "each is read by neighbouring heads")


def causal_argument(case: Case) -> None:
    """causal=True and causal=False."""
    if not case.learner.takes("causal"):
        return
    x = case.x(2, TOKENS)
    for wanted in (True, False):
        y = case.wide(causal=wanted).run(case.raw, x).y
        if case.agrees(y, _with(case, case.raw, x, mask="causal" if wanted else "none"), x):
            continue
        assert case.explanation is not None
        if case.agrees(y, _with(case, case.raw, x, mask="none" if wanted else "causal"), x):
            case.report.found("mask_ignored", f"causal={wanted} has no effect")
        elif case.explanation.spec.mask in ("none", "causal"):
            _name_causal(case, y, x, wanted)
        case.report.check("causal", False, f"causal={wanted} does not give what it says")
        return
    case.report.check("causal", True, "True and False do what they say")


def _name_causal(case: Case, y: Tensor, x: Tensor, wanted: bool) -> None:
    possible: list[tuple[str, Switch]] = [
        ("causal_off_by_one", {"mask": "strict"}),
        ("causal_off_by_one", {"mask": "strict", "empty_rows": "zero"}),
        ("causal_off_by_one", {"mask": "strict", "fill": -1e9}),
        ("causal_off_by_one", {"mask": "next"}),
        ("mask_inverted", {"mask": "future"}),
        ("mask_inverted", {"mask": "future_strict"}),
        ("mask_inverted", {"mask": "future_strict", "fill": -1e9}),
        ("mask_inverted", {"mask": "future_strict", "empty_rows": "zero"}),
        *(("mask_value_too_small", {"mask": "causal", "fill": fill}) for fill in (0.0, -1.0, -5.0, -10.0)),
        *(("mask_value_too_small", {"mask": "causal", "fill": f, "fill_by": "adding"}) for f in (-1.0, -5.0, -10.0)),
        ("mask_value_too_small", {"mask": "causal", "fill_by": "multiplying"}),
        ("softmax_wrong_dim", {"mask": "causal", "softmax": "queries"}),
    ]
    for id, changes in possible:
        if case.agrees(y, _with(case, case.raw, x, **changes), x):
            case.report.found(id, f"causal={wanted} gives the numbers of: {changes}")
            return
    case.report.puzzled(f"with causal={wanted}")


def mask_argument(case: Case) -> None:
    """A boolean mask, True where a query may attend to a key."""
    assert case.built is not None
    assert case.explanation is not None
    if case.built.mask_name is None:
        case.report.skip("mask", "forward takes none")
        return
    x = case.x(2, TOKENS)
    allowed = torch.rand(TOKENS, TOKENS, generator=case.generator) > 0.4
    allowed |= torch.eye(TOKENS, dtype=torch.bool)
    inverse = ~allowed | torch.eye(TOKENS, dtype=torch.bool)
    try:
        y = case.built.run(case.raw, x, mask=allowed).y
        inverted = case.built.run(case.raw, x, mask=inverse).y
    except LearnerError as error:
        case.report.skip("mask", f"a boolean (seq, seq) raises {raised(error)}")
        return
    for spec_mask in dict.fromkeys((case.explanation.spec.mask, "none")):
        if case.agrees(y, _masked(case, x, allowed, mask=spec_mask), x):
            case.report.check("mask", True, "True means: may attend")
            large_scores(case, allowed)
            return
    if _is_added(case, x, allowed):
        case.report.conventions["mask"] = "added to the scores: 0 where a query may attend, -inf where not"
        case.report.check("mask", True, "a mask of 0 and -inf is added to the scores")
        return
    case.report.check("mask", False, "a random boolean mask does not do what it says")
    if case.agrees(y, case.expected(case.raw, x), x):
        case.report.found("mask_ignored", "a random mask changes nothing")
        return
    for spec_mask in dict.fromkeys((case.explanation.spec.mask, "none")):
        for fill, by in ((-math.inf, "replacing"), (-1e9, "replacing"), (-1e9, "adding")):
            changes = {"mask": spec_mask, "fill": fill, "fill_by": by}
            if case.agrees(y, _masked(case, x, ~allowed, **changes), x) or case.agrees(
                inverted, _masked(case, x, ~inverse, **changes), x
            ):
                case.report.found("mask_inverted", "the outputs are those of the mask turned round")
                return
        for fill in (0.0, 1e-9, -0.1, -1.0, -2.0, -3.0, -5.0, -10.0, -20.0):
            for by in ("replacing", "adding", "multiplying"):
                if case.agrees(y, _masked(case, x, allowed, mask=spec_mask, fill=fill, fill_by=by), x):
                    case.report.found("mask_value_too_small", f"masked scores get {fill:g} by {by}")
                    return
    case.report.puzzled("with a random boolean mask")


def _is_added(case: Case, x: Tensor, allowed: Tensor) -> bool:
    """Whether forward takes a mask of numbers that are added to the scores, as Hugging Face's models do."""
    assert case.built is not None
    assert case.explanation is not None
    added = torch.zeros(allowed.shape, dtype=case.dtype).masked_fill(~allowed, -1e9)
    try:
        y = case.built.run(case.raw, x, mask=added).y
    except LearnerError:
        return False
    kinds = dict.fromkeys((case.explanation.spec.mask, "none"))
    return any(case.agrees(y, _masked(case, x, allowed, mask=kind), x) for kind in kinds)


def _masked(case: Case, x: Tensor, allowed: Tensor, **changes: object) -> Tensor:
    assert case.explanation is not None
    spec = dataclasses.replace(case.explanation.spec, **changes)  # type: ignore[arg-type]
    variant = dataclasses.replace(case.explanation, spec=spec)
    with torch.no_grad():
        positions = torch.arange(x.shape[-2])[None]
        return variant.forward(case.raw, x, positions, case.sizes.num_heads, allowed=allowed)


def large_scores(case: Case, allowed: Tensor | None = None) -> None:
    """Scores so large that a finite number in place of a masked one shows: what is masked must stay unseen."""
    assert case.built is not None
    assert case.explanation is not None
    spec, reading = case.explanation.spec, case.explanation.reading
    mixing = {"wrong_head_split", "heads_not_merged", "softmax_wrong_dim", "norm_over_sequence"}
    sizes = ("q", "k", "q_bias", "k_bias") if spec.qk_norm == "none" else ("q_norm", "k_norm")
    if (allowed is None and spec.mask != "causal") or mixing & set(case.report.findings) or sizes[0] not in reading:
        return
    raw = dict(case.raw)
    for name in sizes:
        if name in reading:
            reading[name].write(raw, reading[name].read(raw) * 150)
    leaks = 0.0
    for _ in range(3):
        x = case.x(2, TOKENS)
        other = x.clone()
        if allowed is None:
            other[:, 4:] = case.x(2, TOKENS - 4)
            kept, mask = slice(0, 4), None
        else:
            other[:, 3] = case.x(2)
            kept, mask = slice(0, 3), allowed.clone()
            mask[:3, 3] = False
            mask[:3, :3] |= torch.eye(3, dtype=torch.bool)
        first = case.built.run(raw, x, mask=mask).y[:, kept]
        second = case.built.run(raw, other, mask=mask).y[:, kept]
        leaks = max(leaks, float((first - second).abs().nan_to_num().max()))
    if leaks > 1e-4:
        case.report.found(
            "mask_value_too_small", f"with scores of some 10,000, masked tokens change outputs by {leaks:.2g}"
        )
    case.report.check("large scores", leaks <= 1e-4, "masked tokens stay unseen with scores of some 10,000")
