"""How norms round in bfloat16: norm1 within the block, and norms that are modules by what they are given."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formula.parameters import GATE, Raw
from ..search.trials import agrees
from ..subject.learner import SINGLE, Built
from ..subject.raised import LearnerError
from .case import Case, raised

ROWS = 4 * SINGLE
# The relative error of a row's scale. Rounding single entries averages out to about 2e-4 over 32 of them; a mean, a
# root or a quotient that is itself rounded to bfloat16 is off by about 1e-3.
ROW_SCALE = 7e-4
ALIKE = 0.9  # of the entries equal those of a norm in float32 bit for bit; another order of sums changes a few
SURELY_ALIKE = 0.97  # for one rounded number: a mean that is rounded too leaves up to 0.9 of the entries as they are
SIZE = 16.0  # of x: so large that no eps shows
EPS = 1e-6  # of a norm by itself: none that is usual shows there
LOUD = 2.0**17  # x + norm1(x) * LOUD rounds to norm1(x) * LOUD
VECTOR_NORM = "linalg_vector_norm"
"""F.normalize, as in x-transformers' norm, sums in float32 and rounds one number per row."""


@dataclass(frozen=True, slots=True)
class _Norm:
    """weight * x / sqrt(mean(x^2) + eps), with x - mean(x) in place of x where it is centred."""

    centred: bool
    weight: Tensor  # 1 + w, where it multiplies by that
    eps: float

    def unweighted(self, x: Tensor) -> Tensor:
        """The result without the weight."""
        x, mean_square = self._parts(x)
        return x * torch.rsqrt(mean_square)

    def weighted(self, x: Tensor) -> Tensor:
        """The result."""
        return self.unweighted(x) * self.weight

    def by_a_rounded_number(self, x: Tensor) -> tuple[Tensor, ...]:
        """The results with one number for a row, its scale or its root, that is computed in float32 and then rounded.

        That number is right to half a digit, as every other: its author did compute in float32.
        """
        weight = self.weight.bfloat16()
        centred, mean_square = self._parts(x.float())
        scale, root, x = mean_square.rsqrt().bfloat16(), mean_square.sqrt().bfloat16(), centred.bfloat16()
        return x * scale * weight, x * (scale * weight), x / root * weight

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it divides, and the square of what it divides by, a number for each row."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return x, x.square().mean(-1, keepdim=True) + self.eps


@dataclass(frozen=True, slots=True)
class _Rounding:
    """What became of a norm's rows in bfloat16: row_scale, the error of their scales, and where it rounds."""

    row_scale: float
    cast: str  # for the conventions; empty where it does not compute in float32

    @property
    def check(self) -> str:
        """The reason of the check."""
        fine = self.cast and self.row_scale > ROW_SCALE
        allowed = "it is computed in float32 and rounded" if fine else f"at most {ROW_SCALE:.0e} is allowed"
        return f"the scale of a row is off by {self.row_scale:.1e}; {allowed}"


def _rounding(norm: _Norm, x: Tensor, given: Tensor, like: Callable[[Tensor], float]) -> _Rounding:
    """How a norm of x rounds. given: its result in float64; like: the share of entries that equal another result's."""
    exact, wide = norm.unweighted(x.double()), norm.unweighted(x.float())
    weights = [norm.weight, norm.weight.bfloat16()]  # 1 + w may be rounded before it is applied
    row_scale = min(_row_scales(given, exact * one.double()) for one in weights)
    like_whole = like((wide * norm.weight).bfloat16())
    like_then = like((wide.bfloat16() * norm.weight).bfloat16())
    if row_scale > ROW_SCALE and max(map(like, norm.by_a_rounded_number(x))) >= SURELY_ALIKE:
        return _Rounding(row_scale, "the number that scales a row is rounded first")
    if row_scale > ROW_SCALE and max(like_whole, like_then) < ALIKE:
        return _Rounding(row_scale, "")
    return _Rounding(row_scale, "after the weight" if like_whole >= like_then else "before the weight")


def _row_scales(given: Tensor, exact: Tensor) -> float:
    """The error of the rows' scales: the root mean square of (given . exact) / (exact . exact) - 1."""
    scale = (given * exact).sum(-1) / exact.square().sum(-1) - 1
    return float(scale.square().mean().sqrt())


def promises(case: Case, name: str) -> bool:
    """Whether the constructor takes this dtype, and the block runs in it."""
    return case.learner.takes("dtype") and name not in case.dtype_raises


def norm1_in_the_block(case: Case) -> bool:
    """Compare norm1(x) of a bfloat16 block with the exact one. Returns whether that was possible.

    Inputs have one token, and the value and output projections are multiples of the identity: the output is
    x + LOUD * norm1(x), in which x is lost.
    """
    assert case.explanation is not None
    spec, reading = case.explanation.spec, case.explanation.reading
    plain = not spec.post and spec.norm1 in ("rms", "layer") and spec.residual1 == "input"
    plain &= (
        spec.residual2 == "hidden"
        and spec.softmax in ("keys", "queries", "nothing")
        and not spec.scaled_after
        and spec.mask in ("none", "causal")
    )
    plain &= not spec.sandwich and not spec.layer_scale and bool(spec.branch == 1) and spec.end1 == spec.end2 == "no"
    plain &= not {"heads_not_merged", "wrong_head_split"} & set(case.report.findings)
    if not plain or "o" not in reading or spec.output == "none" or max(spec.eps1, spec.eps2) > 1e-4:
        case.report.skip("norm in bfloat16", "not compared, because other faults or choices change it")
        return False
    if case.lengths.single > 1 and spec.mask != "causal":
        case.report.skip("norm in bfloat16", "it does not run on one token, and the weights of several are rounded")
        return False
    built = case.low("bfloat16")
    raw = built.draw(case.generator, torch.bfloat16)
    identity = torch.eye(case.sizes.d_model)
    if reading["v"].read(raw).shape != identity.shape:
        case.report.skip("norm in bfloat16", "keys and values are grouped")
        return False
    reading["v"].write(raw, identity)
    reading["o"].write(raw, identity * LOUD * (2 if GATE in reading else 1))  # a gate of zeros halves
    for name in ("down", "down_bias", "v_bias", "o_bias", "norm1_bias", GATE, f"{GATE}_bias"):
        if name in reading:
            reading[name].write(raw, torch.zeros(()))
    sequences = (case.single(ROWS, dtype=torch.float64) * SIZE).bfloat16()
    x = sequences[:, :1]
    weight = torch.ones(case.sizes.d_model)
    if "norm1" in reading and spec.weight1 == "own":
        weight = reading["norm1"].read(raw).float() + (1 if spec.plus_one else 0)
    eps = case.arguments.get("eps", case.report.conventions.get("eps", 1e-6))
    y = torch.cat([built.run(raw, part).y[:, :1] for part in sequences.split(SINGLE)])
    norm = _Norm(spec.norm1 == "layer", weight, eps)
    wide = case.wide().run({name: one.to(case.dtype) for name, one in raw.items()}, sequences[:SINGLE].to(case.dtype)).y
    given = (wide[:, :1] - x[:SINGLE]).double() / LOUD
    if _row_scales(given, norm.weighted(x[:SINGLE].double())) > ROW_SCALE:  # such as a limit of what is added
        case.report.skip(
            "norm in bfloat16", "not read from the output, which is another for numbers as large as are needed"
        )
        return False

    def like(normed: Tensor) -> float:
        return float((y == x + normed * LOUD).double().mean())

    rounding = _rounding(norm, x, (y.double() - x.double()) / LOUD, like)
    if rounding.cast:
        case.report.conventions["norm_cast"] = rounding.cast
    else:
        operations = built.run(raw, sequences, trace=True).operations
        _found(case, "norm1(x)", rounding, by_vector_norm=VECTOR_NORM in operations)
    case.report.check("norm in bfloat16", bool(rounding.cast), rounding.check)
    return True


def _found(case: Case, what: str, rounding: _Rounding, *, by_vector_norm: bool) -> None:
    evidence = (
        f"in bfloat16 the scale of a row of {what} is off by {rounding.row_scale:.1e}; computed in float32, by 2e-4"
    )
    counts = promises(case, "bfloat16") or not by_vector_norm
    case.report.found("norm_without_upcast", evidence, counts=counts)


def norms_by_themselves(case: Case, *, but: frozenset[str] = frozenset()) -> dict[str, bool]:
    """Compare what the modules of norms give with what they are given, in bfloat16, whatever the rest of it does.

    but: parameters of norms that need not be looked at. A block that raises in bfloat16 may have run its first norm.
    Returns the weights of the norms that are known, and whether each multiplies by 1 + weight.
    """
    try:
        wide, low = case.wide(), case.low("bfloat16")
    except LearnerError as error:
        case.report.skip("norms by themselves", f"there is no bfloat16 block: {raised(error)}")
        return {}
    raw = low.draw(case.generator, torch.bfloat16)
    norms = {name: norm for name, norm in _norms_of(case, wide, raw).items() if not but & {norm.parameter, norm.bias}}
    for one in norms.values():
        if one.bias:
            raw[one.bias] = torch.zeros_like(raw[one.bias])
    x = (case.x(case.sizes.head_dim, case.tokens, dtype=torch.float64) * SIZE).bfloat16()  # a shape that ran before
    judged, rounded = [], []
    told = {case.classes.get(one) for one in but if "norm_without_upcast" in case.report.findings}
    for name, call in low.seen(raw, x, [*norms]).items():
        given, result = call["given"], call["result"]
        if given.dtype != torch.bfloat16 or not _has_rows(case, given, result) or not torch.isfinite(given).all():
            continue  # a norm that is given float32 has nothing to convert
        rounding = _rounding(norms[name].norm, given, result.double(), _share_of(result))
        judged.append(name)
        if not rounding.cast:
            rounded.append(name)
            owner = case.classes[norms[name].parameter]
            if owner not in told:  # once for each class
                by_vector_norm = VECTOR_NORM in call["operations"]
                _found(case, f"the norm of {norms[name].parameter}", rounding, by_vector_norm=by_vector_norm)
            told.add(owner)
    if judged:
        reason = f"not computed in float32: {', '.join(rounded)}" if rounded else f"{', '.join(judged)}: in float32"
        case.report.check("norms by themselves", not rounded, reason)
    return {one.parameter: one.plus_one for one in norms.values()}


def _has_rows(case: Case, given: Tensor, result: Tensor) -> bool:
    """Whether both are as many rows of d_model numbers: what the learner's process says may be anything."""
    return given.shape == result.shape and given.shape[-1:] == (case.sizes.d_model,) and result.is_floating_point()


def _share_of(result: Tensor) -> Callable[[Tensor], float]:
    return lambda other: float((result == other).double().mean())


@dataclass(frozen=True, slots=True)
class _Module:
    """A norm that is a module, and its parameters; bias: empty if it has none."""

    norm: _Norm
    parameter: str
    bias: str
    plus_one: bool


def _norms_of(case: Case, built: Built, raw: Raw) -> dict[str, _Module]:
    """The modules of the learner's own classes whose numbers are those of a norm. raw: the weights that they get later.

    They hold a weight of d_model and perhaps a bias, and nothing else.
    """
    held: dict[str, list[str]] = defaultdict(list)
    values = built.draw(case.generator, case.dtype)
    for name in values:
        held[name.rpartition(".")[0]].append(name)
    possible = {
        module: names
        for module, names in held.items()
        if module
        and all(values[name].shape == (case.sizes.d_model,) and name in case.classes for name in names)
        and not any(other.startswith(f"{module}.") for other in held)
    }
    calls = built.seen(values, case.x(case.sizes.head_dim, case.tokens) * SIZE, [*possible])
    found = {}
    for module, call in calls.items():
        if not _has_rows(case, call["given"], call["result"]):
            continue
        norm = _recognised(possible[module], values, raw, call["given"], call["result"], case.tolerance)
        if norm is not None:
            found[module] = norm
    return found


def _recognised(
    names: list[str], values: Raw, raw: Raw, given: Tensor, result: Tensor, tolerance: float
) -> _Module | None:
    """The norm that gives this result, if one does, with its weight in raw."""
    orders = [(names[0], "")] if len(names) == 1 else [*itertools.permutations(names, 2)] if len(names) == 2 else []
    for centred, plus_one, (weight, bias) in itertools.product((False, True), (False, True), orders):
        normed = _Norm(centred, values[weight] + plus_one, EPS).weighted(given.to(values[weight].dtype))
        expected = normed + values[bias] if bias else normed
        if agrees(result, expected, expected, tolerance):
            return _Module(_Norm(centred, raw[weight].float() + plus_one, EPS), weight, bias, plus_one)
    return None
