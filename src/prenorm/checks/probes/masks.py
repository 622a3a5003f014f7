"""Whether masks work: the causal argument, a mask argument, and masks under very large scores."""

import math

import torch
from torch import Tensor

from ..faults import FAULTS
from ..formula.parameters import Raw
from ..search.switches import Switch
from ..subject.child import meanings
from ..subject.raised import LearnerError
from .case import Case, raised
from .diagnosis import faults, filled


def causal_argument(case: Case) -> None:
    """causal=True and causal=False."""
    if not case.learner.takes("causal"):
        return
    x = case.x(2, case.tokens)
    for wanted in (True, False):
        y = case.wide(causal=wanted).run(case.raw, x).y
        if case.agrees(y, case.expected(case.raw, x, mask="causal" if wanted else "none"), x):
            continue
        assert case.explanation is not None
        if case.agrees(y, case.expected(case.raw, x, mask="none" if wanted else "causal"), x):
            case.report.found("mask_ignored", f"causal={wanted} has no effect")
        elif case.explanation.spec.mask in ("none", "causal"):
            _name_causal(case, y, x, wanted)
        case.report.check("causal", False, f"causal={wanted} does not do what it says")
        return
    case.report.check("causal", True, "True and False do what they say")


def _name_causal(case: Case, y: Tensor, x: Tensor, wanted: bool) -> None:
    assert case.explanation is not None
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
        *(
            ("mask_value_too_small", {"mask": "causal", "fill": f, "fill_by": "adding"})
            for f in (1.0, -1.0, -5.0, -10.0)
        ),
        ("mask_value_too_small", {"mask": "causal", "fill_by": "multiplying"}),
        ("softmax_wrong_dim", {"mask": "causal", "softmax": "queries"}),
    ]
    for id, changes in possible:
        if case.agrees(y, case.expected(case.raw, x, **changes), x):
            said = faults(case.explanation.changed(**changes))
            case.report.found(id, f"with causal={wanted}, {said.get(id, FAULTS[id].meaning)}")
            return
    case.report.puzzled(f"with causal={wanted}")


def mask_argument(case: Case) -> None:
    """A boolean mask, True where a query may attend to a key."""
    assert case.built is not None
    assert case.explanation is not None
    if case.built.mask_name is None:
        given = [one for one in case.learner.recipe.call.arguments if meanings.MASK.search(one.name)]
        told = f"no mask (seq, seq) is handed in: {given[0].name}={given[0].value}" if given else "forward takes none"
        case.report.skip("mask", told)
        return
    x = case.x(2, case.tokens)
    allowed = torch.rand(case.tokens, case.tokens, generator=case.generator) > 0.4
    allowed |= torch.eye(case.tokens, dtype=torch.bool)
    inverse = ~allowed | torch.eye(case.tokens, dtype=torch.bool)
    try:
        y = case.built.run(case.raw, x, mask=allowed).y
        inverted = case.built.run(case.raw, x, mask=inverse).y
    except LearnerError as error:
        case.report.skip("mask", f"a boolean mask (seq, seq) raises {raised(error)}")
        return
    for spec_mask in dict.fromkeys((case.explanation.spec.mask, "none")):
        if case.agrees(y, case.expected(case.raw, x, allowed=allowed, mask=spec_mask), x):
            case.report.check("mask", True, "True means may attend")
            large_scores(case, allowed)
            return
    if _is_added(case, x, allowed):
        case.report.conventions["mask"] = "added to the scores: 0 where a query may attend, -inf where not"
        case.report.check("mask", True, "a mask of 0 and -inf is added to the scores")
        return
    if case.agrees(y, case.expected(case.raw, x), x):
        _without_effect(case)
        return
    if all(case.agrees(one, case.expected(case.raw, x, mask="causal"), x) for one in (y, inverted)):
        _is_a_switch(case)
        return
    for spec_mask in dict.fromkeys((case.explanation.spec.mask, "none")):
        for fill, by in ((-math.inf, "replacing"), (-1e9, "replacing"), (-1e9, "adding")):
            changes: Switch = {"mask": spec_mask, "fill": fill, "fill_by": by}
            if case.agrees(y, case.expected(case.raw, x, allowed=~allowed, **changes), x) or case.agrees(
                inverted, case.expected(case.raw, x, allowed=~inverse, **changes), x
            ):
                case.report.conventions["mask"] = "True = masked"
                wanted = case.target.mask_true_attends
                if wanted:
                    case.report.found("mask_inverted", "the outputs are those of the inverted mask")
                case.report.check("mask", not wanted, "True means masked")
                large_scores(case, allowed, turned=True)
                return
        for fill in (0.0, 1.0, 1e-9, -0.1, -1.0, -2.0, -3.0, -5.0, -10.0, -20.0):
            for by in ("replacing", "adding", "multiplying"):
                if case.agrees(
                    y, case.expected(case.raw, x, allowed=allowed, mask=spec_mask, fill=fill, fill_by=by), x
                ):
                    case.report.found("mask_value_too_small", f"masked scores {filled(fill, by)}")
                    case.report.check("mask", False, "a random boolean mask does not do what it says")
                    return
    if not _is_of_attention(case, "does something else than to hide keys"):
        return
    case.report.check("mask", False, "a random boolean mask does not do what it says")
    case.report.puzzled("with a random boolean mask, neither True = attend nor True = masked explains the outputs")


def _without_effect(case: Case) -> None:
    """Report that a random mask has no effect, if the argument is one for attention.

    Where the block hides later tokens by itself, the argument may be one for padding, or for another way to attend.
    """
    assert case.explanation is not None
    if not _is_of_attention(case, "has no effect"):
        return
    if case.explanation.spec.mask == "none":
        evidence, counts = "a random mask has no effect", True
    else:
        evidence = "a random mask (seq, seq) has no effect; the block has one of its own"
        counts = case.target.llama_design
    case.report.found("mask_ignored", evidence, counts=counts)
    case.report.check("mask", not counts, evidence)


def _is_a_switch(case: Case) -> None:
    """Report that any mask means causal, whatever is in it: is_causal=mask is not None (published Whisper)."""
    told = "any mask makes attention causal, whatever is in it; without one, every token attends to all"
    case.report.conventions["mask"] = told
    wanted = case.target.mask_true_attends
    if wanted:
        case.report.found("mask_ignored", told)
    case.report.check("mask", not wanted, told)


def _is_of_attention(case: Case, effect: str) -> bool:
    """Whether the argument's name says no more than that it masks attention; otherwise its effect is only told."""
    assert case.built is not None
    name = case.built.mask_name or ""
    if meanings.ATTENTION_MASK.search(name):
        return True
    case.report.skip("mask", f"{name} {effect}, and may be a mask of something else")
    case.report.conventions["mask"] = f"{name} is not understood: a mask (seq, seq) {effect}"
    case.report.conventions.pop("mask_handed_in", None)
    return False


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
    return any(case.agrees(y, case.expected(case.raw, x, allowed=allowed, mask=kind), x) for kind in kinds)


def large_scores(case: Case, allowed: Tensor | None = None, *, turned: bool = False) -> None:
    """Scores so large that a finite fill value shows, and that their exponentials overflow.

    turned: True in the mask means masked.
    """
    assert case.built is not None
    assert case.explanation is not None
    spec, reading = case.explanation.spec, case.explanation.reading
    mixing = {"wrong_head_split", "heads_not_merged", "softmax_wrong_dim", "norm_over_sequence"}
    mixing |= {"missing_softmax", "mask_after_softmax"}  # these show without large scores
    sizes = ("q", "k", "q_bias", "k_bias") if spec.qk_norm == "none" else ("q_norm", "k_norm")
    if mixing & set(case.report.findings) or sizes[0] not in reading:
        return
    if allowed is None and spec.mask != "causal":
        _overflow(case, [case.built.run(_large(case, sizes), case.x(2, case.tokens)).y])
        return
    raw = _large(case, sizes)
    leaks, outputs = 0.0, []
    for _ in range(3):
        x = case.x(2, case.tokens)
        other = x.clone()
        if allowed is None:
            other[:, 4:] = case.x(2, case.tokens - 4)
            kept, mask = slice(0, 4), None
        else:
            other[:, 3] = case.x(2)
            kept, mask = slice(0, 3), allowed.clone()
            mask[:3] = torch.eye(case.tokens, dtype=torch.bool)[:3]  # a single score is far below zero half of the time
        mask = ~mask if turned and mask is not None else mask
        first = case.built.run(raw, x, mask=mask).y[:, kept]
        second = case.built.run(raw, other, mask=mask).y[:, kept]
        outputs += [first, second]
        leaks = max(leaks, float((first - second).abs().nan_to_num().max()))
    if _overflow(case, outputs):
        return
    if leaks > 1e-4:
        case.report.found(
            "mask_value_too_small", f"with scores of about 50,000, masked tokens change outputs by {leaks:.2g}"
        )
    case.report.check("large scores", leaks <= 1e-4, "masked tokens have no effect with scores of about 50,000")


def _large(case: Case, names: tuple[str, ...]) -> Raw:
    """Parameters that give scores of about 50,000."""
    assert case.explanation is not None
    raw, reading = dict(case.raw), case.explanation.reading
    for name in names:
        if name in reading:
            reading[name].write(raw, reading[name].read(raw) * 300)
    return raw


def _overflow(case: Case, outputs: list[Tensor]) -> bool:
    """Whether large scores give NaN or infinity, while moderate ones do not."""
    assert case.built is not None
    lost = any(not torch.isfinite(y).all() for y in outputs)
    if lost and torch.isfinite(case.built.run(case.raw, case.x(2, case.tokens)).y).all():
        case.report.found("softmax_overflows", "with scores of about 50,000, outputs are NaN or infinite")
        case.report.check("large scores", False, "with scores of about 50,000, outputs are NaN or infinite")
        return True
    return False
