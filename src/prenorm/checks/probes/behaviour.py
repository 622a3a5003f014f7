"""How a block behaves, whatever its numbers are: repeated calls, the caller's tensor, batches, shapes."""

import torch
from torch import Tensor

from ..formula.parameters import Raw
from ..source.misspelt import misspelt
from ..subject.learner import Built
from ..subject.raised import LearnerError
from .case import Case, raised

DROPOUT = ("dropout", "bernoulli")


def repeated_calls(case: Case, built: Built, raw: Raw) -> bool:
    """Repeat a call, with the same and with another random seed. Returns whether calls are repeatable."""
    x = case.x(2, case.tokens, dtype=torch.float32)
    try:
        first, again, otherwise = (built.run(raw, x, seed=seed).y for seed in (1, 1, 2))
    except LearnerError as error:
        case.build().run(raw, x)  # raises by itself, unless an earlier call is the reason
        case.report.errors.setdefault("retains_state", error.error)
        case.report.found(
            "retains_state", f"the first call runs, and a later one of the same block raises {raised(error)}"
        )
        built.fresh = True
        case.report.check("repeated calls", False, "the second call with the same input raises")
        return False
    if not _same(first, again):
        fresh = [case.build().run(raw, x, seed=1).y for _ in range(2)]
        if _same(fresh[0], fresh[1]):
            case.report.found(
                "retains_state",
                f"the same call gives outputs that differ by {_gap(first, again)} the second time; new blocks agree",
            )
            built.fresh = True
        else:
            case.report.found(
                "not_deterministic", f"the same call gives outputs that differ by {_gap(*fresh)} in two new blocks"
            )
    elif not _same(first, otherwise):
        _random(case, built, raw, x, f"in eval mode, outputs with two random seeds differ by {_gap(first, otherwise)}")
    elif not _unchanged_by_others(case, built, raw, x, first):
        built.fresh = True
    good = not {"retains_state", "not_deterministic", "dropout_in_eval"} & set(case.report.findings)
    case.report.check(
        "repeated calls", good, "the same input gives the same output" if good else "outputs differ between calls"
    )
    return good


def _random(case: Case, built: Built, raw: Raw, x: Tensor, evidence: str) -> None:
    traced = built.run(raw, x, seed=1, trace=True)
    dropped = any(word in name for name in traced.operations for word in DROPOUT)
    id = "dropout_in_eval" if dropped or _drops(built, raw, x) else "not_deterministic"
    case.report.errors.setdefault(id, {"frames": traced.random})
    case.report.found(id, evidence)


def _drops(built: Built, raw: Raw, x: Tensor) -> bool:
    """Whether random numbers zero some entries, as hand-written dropout does."""
    ys = torch.stack([built.run(raw, x, seed=seed).y - x for seed in range(8)])
    return bool((ys.round(decimals=6).flatten(1).unique(dim=0).shape[0] > 1) and (ys == 0).any())


def _unchanged_by_others(case: Case, built: Built, raw: Raw, x: Tensor, first: Tensor) -> bool:
    """The same call after calls with other inputs."""
    others = [(2, case.tokens), *(shape for shape in ((1, case.sizes.num_heads), (3, 11)) if case.runs(raw, shape))]
    try:
        for shape in others:
            built.run(raw, case.x(*shape, dtype=torch.float32))
        later = built.run(raw, x, seed=1).y
    except LearnerError as error:
        case.report.found("retains_state", f"after calls with other inputs it raises {raised(error)}")
        return False
    if not _same(first, later):
        case.report.found(
            "retains_state",
            f"after calls with other inputs, the output for the same input differs by {_gap(first, later)}",
        )
        return False
    built.run(raw, x, training=True)
    if not _same(first, built.run(raw, x, seed=1).y):
        case.report.found("retains_state", "after a call in training mode, the output for the same input differs")
        return False
    return True


def dropout_argument(case: Case, raw: Raw, texts: str) -> None:
    """With dropout=0.5, eval mode must not drop anything. texts: the source of the block and its neighbours."""
    if not case.learner.takes("dropout") or {"dropout_in_eval", "not_deterministic"} & set(case.report.findings):
        return
    try:
        built = case.build(dropout=0.5)
        built.fresh = "retains_state" in case.report.findings
        x = case.x(2, case.tokens, dtype=torch.float32)
        first, second = (built.run(raw, x, seed=seed).y for seed in (1, 2))
        drawn = [] if _same(first, second) else built.run(raw, x, trace=True).random
    except LearnerError as error:
        said = f"dropout=0.5 raises {raised(error)}"
        if misspelt(error.error, texts):
            case.report.errors.setdefault(f"{error.stage}_error", error.error)
            case.report.found(f"{error.stage}_error", said)
            case.report.check("dropout in eval mode", False, said)
        else:  # the constructor may refuse it
            case.report.skip("dropout in eval mode", said)
        return
    if not _same(first, second):
        case.report.errors.setdefault("dropout_in_eval", {"frames": drawn})
        case.report.found(
            "dropout_in_eval",
            f"with dropout=0.5, two calls in eval mode give outputs that differ by {_gap(first, second)}",
        )
    case.report.check("dropout in eval mode", _same(first, second), "dropout=0.5 and eval(): two calls compared")


def input_kept(case: Case, built: Built, raw: Raw) -> None:
    """The caller's tensor is unchanged by a call."""
    x = case.x(2, case.tokens, dtype=torch.float32)
    kept = torch.equal(built.run(raw, x).x_after, x)
    if not kept:
        case.report.found("modifies_input", "after the call, the caller's x has changed")
    case.report.check("the input is left alone", kept, "x before and after a call")


def batch_independence(case: Case, built: Built, raw: Raw) -> None:
    """A sequence's output must not depend on the others in its batch, of which a causal block may see those before."""
    x = case.x(3, case.tokens, dtype=torch.float32)
    other = torch.cat((case.x(1, case.tokens, dtype=torch.float32) * 3, x[1:]))
    together, beside = built.run(raw, x).y, built.run(raw, other).y
    gap = _gap(together[1:], beside[1:])
    good = _same(together[1:], beside[1:])
    if good:
        try:
            alone = built.run(raw, x[2:]).y
            gap, good = _gap(together[2:], alone), _same(together[2:], alone)
        except LearnerError as error:
            case.report.check("batch", False, f"a batch of one raises {raised(error)}")
            case.report.found("batch_of_one", f"a batch of two runs, a batch of one raises {raised(error)}")
            case.report.errors["batch_of_one"] = error.error
            return
    if not good:
        evidence = f"a sequence's output changes by {gap} if another sequence of its batch changes"
        mend = None
        if not _tokens_meet(case, built, raw):
            evidence += ", and tokens of a sequence do not see each other, as where the axes are (seq, batch, d_model)"
            mend = 'batch_first=True in nn.MultiheadAttention; if these axes are meant, --call "swapped(block)(x)"'
        case.report.found("batch_coupled", evidence, mend=mend)
    case.report.check("batch", good, "sequences in different batches, and alone")


def _tokens_meet(case: Case, built: Built, raw: Raw) -> bool:
    x = case.x(2, case.tokens, dtype=torch.float32)
    changed = x.clone()
    changed[:, 1] = case.x(2, dtype=torch.float32)
    others = [0, *range(2, case.tokens)]
    return not _same(built.run(raw, x).y[:, others], built.run(raw, changed).y[:, others])


def leading_dims(case: Case, built: Built, raw: Raw) -> None:
    """Compare (seq, d_model) and two batch dimensions with one. Most blocks take (batch, seq, d_model) only."""
    x = case.x(2, 3, case.tokens, dtype=torch.float32)
    usual = torch.stack([built.run(raw, one).y for one in x])
    refused, other = [], []
    for name, value, expected in (
        ("(seq, d_model)", x[0, 0], usual[0, 0]),
        ("(batch, samples, seq, d_model)", x, usual),
    ):
        try:
            y = built.run(raw, value).y
        except LearnerError as error:
            refused.append(f"{name} raises {raised(error)}")
            continue
        if not _same(y, expected) and "batch_coupled" not in case.report.findings:
            other.append(f"{name} gives outputs that differ by {_gap(y, expected)}")
    case.report.conventions["leading_dims"] = "(batch, seq, d_model) only" if refused or other else "any"
    wanted = case.target.leading_dims
    if other or (refused and wanted):
        case.report.found("leading_dims", "; ".join(refused + other), counts=wanted)
    if refused and not (other or wanted):
        case.report.skip("leading dimensions", "it takes (batch, seq, d_model) only, as most blocks do")
    else:
        good = not (refused or other)
        case.report.check("leading dimensions", good, "(seq, d), (batch, seq, d), (a, b, seq, d) compared")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=2e-5 * float(_size(a)), equal_nan=True)


def _size(a: Tensor) -> float:
    finite = a[torch.isfinite(a)]
    return float(finite.abs().max()) if finite.numel() else 1.0


def _gap(a: Tensor, b: Tensor) -> str:
    gap = (a - b).abs()
    if gap.isnan().any():
        return "NaN in some places"
    return f"{float(gap.max()):.2g}"
