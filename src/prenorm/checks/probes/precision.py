"""Blocks in other dtypes: the output's dtype, how the norm rounds, and whether angles survive bfloat16."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formula.parameters import Raw
from ..subject.child.dtypes import CAST, COMBINED, KEPT, MADE, WEIGHT
from ..subject.learner import SINGLE, Built, Description, LearnerError
from .case import Case, raised

ROWS = 4 * SINGLE
# The relative error of a row's scale. Rounding single entries averages out to about 2e-4 over 32 of them; a mean, a
# root or a quotient that is itself rounded to bfloat16 is off by about 1e-3.
ROW_SCALE = 7e-4
ALIKE = 0.9  # of the entries equal those of a norm in float32 bit for bit; another order of sums changes a few
SURELY_ALIKE = 0.97  # for one rounded number: a mean that is rounded too leaves up to 0.9 of the entries as they are
SIZE = 16.0  # of x: so large that no eps shows
LOUD = 2.0**17  # x + norm1(x) * LOUD rounds to norm1(x) * LOUD


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong in another dtype, and the fix if it is known."""

    text: str
    mend: str | None = None


def dtypes(case: Case) -> None:
    """In float32, float64 and bfloat16 (constructor's dtype or block.to()), the output must have the input's dtype."""
    by_argument = case.learner.takes("dtype")
    names = ["float32", "float64", "bfloat16"] if by_argument else ["float32"]
    problems = [problem for name in names if (problem := _in_dtype(case, name, by_argument)) is not None]
    texts = "; ".join(one.text for one in problems)
    if problems:
        mend = next((one.mend for one in problems if one.mend is not None), None)
        case.report.found("wrong_dtype", texts, mend=mend)
    case.report.check("dtypes", not problems, texts or f"{', '.join(names)}: the output has the input's dtype")
    if not by_argument or "bfloat16" in case.dtype_raises:
        moved = _in_dtype(case, "bfloat16", False)
        if not by_argument and moved is not None:  # without a dtype argument, no other dtype is promised
            case.report.found("wrong_dtype", moved.text, counts=False, mend=moved.mend)
        case.report.conventions["to_bfloat16"] = "runs" if moved is None else moved.text


def _in_dtype(case: Case, name: str, by_argument: bool) -> _Problem | None:
    """What is wrong with a block in this dtype."""
    dtype = getattr(torch, name)
    how = f"with dtype={name}" if by_argument else f"after block.to({name})" if name != "float32" else f"in {name}"
    try:
        if by_argument:
            built = case.build(dtype={"dtype": name})
        else:
            built = case.build() if name == "float32" else case.build(to=name)
        raw, x = built.draw(case.generator, dtype), case.x(2, case.tokens, dtype=dtype)
    except LearnerError as error:
        case.dtype_raises.add(name)
        return _Problem(f"{how} the constructor raises {raised(error)}")
    try:
        y = built.run(raw, x).y
    except LearnerError as error:
        case.dtype_raises.add(name)
        what, mend = _left(case, built, raw, x, error.error)
        reason = f": {what} (torch: {raised(error)})" if what else f" {raised(error)}"
        return _Problem(f"{how} forward raises{reason}", mend)
    if y.dtype != dtype:
        what, mend = _left(case, built, raw, x, None)
        text = f"{how} the output is {str(y.dtype).removeprefix('torch.')}"
        return _Problem(f"{text}: {what}" if what else text, mend)
    others = [one for one in built.parameters if one["dtype"] != name] if by_argument else []
    matrices = sorted({one["dtype"] for one in others if len(one["shape"]) > 1})
    if others and not matrices and name == "bfloat16":
        case.report.conventions["weights_kept_in"] = f"{', '.join(sorted({one['dtype'] for one in others}))}: vectors"
    return _Problem(f"{how} some weights are {', '.join(matrices)}") if matrices else None


BACK = "convert the result back to x.dtype: .to(x.dtype)"
LEFT = {
    WEIGHT: ("{name} is {other}", f"pass dtype on to the module that has it; or {BACK}"),
    KEPT: ("{name} stays {other}", BACK),
    MADE: ("a tensor is made in {other}", "make it in x.dtype, or convert it before it meets other tensors"),
    CAST: ("a {own} tensor becomes {other} and is not converted back", BACK),
    COMBINED: ("a {own} tensor meets a {other} one{name}, and the result stays {other}", BACK),
}
"""For each way to leave a dtype (child/dtypes.py): what is said of it, and the fix."""


def _left(case: Case, built: Built, raw: Raw, x: Tensor, told: Description | None) -> tuple[str, str | None]:
    """What left the dtype first, on the way to an error (told) or to an output in another one, and the fix.

    Empty where that is not sure. Stores the line where it happened, or else where it raised; a weight got its dtype
    in the constructor.
    """
    try:
        stray = built.run(raw, x, dtypes=True).stray
    except LearnerError as error:
        stray = error.error.get("stray")
    how = "" if stray is None else stray["how"]
    told = stray if stray is not None and stray["frames"] else told
    if told is not None and how != WEIGHT:
        case.report.errors.setdefault("wrong_dtype", told)
    if stray is None or how not in LEFT:
        return "", None
    what, mend = LEFT[stray["how"]]
    name = f" ({stray['name']})" if stray["how"] == COMBINED and stray["name"] else stray["name"]
    return what.format(own=str(x.dtype).removeprefix("torch."), other=stray["dtype"], name=name), mend


def low_precision(case: Case) -> None:
    """The norm and the rotation of a bfloat16 block, by the constructor's dtype if that runs, otherwise by .to()."""
    if case.report.conventions.get("to_bfloat16", "runs") != "runs":
        _norm_alone(case)
        return
    try:
        _norm_rounding(case, None)
        _second_norm(case)
        _angles(case)
    except LearnerError as error:
        case.report.skip("low precision", raised(error))


def _norm_alone(case: Case) -> None:
    """Compare norm1 in bfloat16 where a bfloat16 block does not run, within a block in float32."""
    assert case.built is not None
    assert case.explanation is not None
    norm = case.explanation.reading.get("norm1")
    own = set() if norm is None else {*norm.parameters}
    holders = {one.rpartition(".")[0] for one in own}
    beside = {one["name"] for one in case.built.parameters if one["name"].startswith(tuple(f"{h}." for h in holders))}
    if not holders or "" in holders or beside - own:
        case.report.skip("low precision", "a bfloat16 block does not run, and the norm is no module of its own")
        return
    try:
        _norm_rounding(case, case.build(to="bfloat16", modules=sorted(holders)))
    except LearnerError as error:
        case.report.skip("low precision", f"neither a bfloat16 block nor its norm runs: {raised(error)}")


def _norm_rounding(case: Case, alone: Built | None) -> None:
    """Compare norm1(x) in bfloat16 with the exact one. alone: a block in float32 whose norm1 computes in bfloat16.

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
        return
    if case.lengths.single > 1 and spec.mask != "causal":
        case.report.skip("norm in bfloat16", "it does not run on one token, and the weights of several are rounded")
        return
    built = alone or case.low("bfloat16")
    raw = built.draw(case.generator, torch.bfloat16)
    identity = torch.eye(case.sizes.d_model)
    if reading["v"].read(raw).shape != identity.shape:
        case.report.skip("norm in bfloat16", "keys and values are grouped")
        return
    reading["v"].write(raw, identity)
    reading["o"].write(raw, identity * LOUD)
    for name in ("down", "down_bias", "v_bias", "o_bias", "norm1_bias"):
        if name in reading:
            reading[name].write(raw, torch.zeros(()))
    sequences = (case.single(ROWS, dtype=torch.float64) * SIZE).bfloat16()
    x = sequences[:, :1]
    weight = torch.ones(case.sizes.d_model)
    if "norm1" in reading and spec.weight1 == "own":
        weight = reading["norm1"].read(raw).float() + (1 if spec.plus_one else 0)
    dtype = torch.bfloat16 if alone is None else torch.float32
    y = torch.cat([built.run(raw, part.to(dtype)).y[:, :1] for part in sequences.split(SINGLE)])
    exact, wide = _normed(x.double(), case), _normed(x.float(), case)
    whole, then_weight = (wide * weight).bfloat16(), (wide.bfloat16() * weight).bfloat16()
    added = (y.double() - x.double()) / LOUD
    weights = [weight, weight.bfloat16()]  # 1 + w may be rounded before it is applied
    row_scale = min(_row_scales(added, exact * one.double()) for one in weights)

    def like(normed: Tensor) -> float:
        return float((y == x.to(dtype) + normed.to(dtype) * LOUD).double().mean())

    like_whole, like_then = like(whole), like(then_weight)
    like_rounded = max(map(like, _by_a_rounded_number(x, weight.bfloat16(), case)))
    if row_scale > ROW_SCALE and like_rounded >= SURELY_ALIKE:
        case.report.conventions["norm_cast"] = "the number that scales a row is rounded first"
    elif row_scale > ROW_SCALE and max(like_whole, like_then) < ALIKE:
        case.report.found(
            "norm_without_upcast",
            f"in bfloat16 the scale of a row of norm1(x) is off by {row_scale:.1e}; computed in float32, by 2e-4",
            counts=_promises(case, "bfloat16")
            or VECTOR_NORM not in built.run(raw, sequences.to(dtype), trace=True).operations,
        )
    else:
        order = "after the weight" if like_whole >= like_then else "before the weight"
        case.report.conventions["norm_cast"] = order
    good = "norm_without_upcast" not in case.report.findings
    allowed = "it is computed in float32 and rounded" if good and row_scale > ROW_SCALE else ""
    allowed = allowed or f"at most {ROW_SCALE:.0e} is allowed"
    case.report.check("norm in bfloat16", good, f"the scale of a row is off by {row_scale:.1e}; {allowed}")


VECTOR_NORM = "linalg_vector_norm"
"""F.normalize, as in x-transformers' norm, sums in float32 and rounds one number per row."""


def _promises(case: Case, name: str) -> bool:
    """Whether the constructor takes this dtype, and the block runs in it."""
    return case.learner.takes("dtype") and name not in case.dtype_raises


def _normed(x: Tensor, case: Case) -> Tensor:
    x, mean_square = _centred(x, case)
    return x * torch.rsqrt(mean_square)


def _by_a_rounded_number(x: Tensor, weight: Tensor, case: Case) -> tuple[Tensor, ...]:
    """The norm whose one number for a row, its scale or its root, is computed in float32 and rounded to bfloat16.

    That number is right to half a digit, as every other: its author did compute in float32.
    """
    centred, mean_square = _centred(x.float(), case)
    scale, root, x = mean_square.rsqrt().bfloat16(), mean_square.sqrt().bfloat16(), centred.bfloat16()
    return x * scale * weight, x * (scale * weight), x / root * weight


def _centred(x: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """What the norm divides, and the square of what it divides by, a number for each row."""
    assert case.explanation is not None
    if case.explanation.spec.norm1 == "layer":
        x = x - x.mean(-1, keepdim=True)
    eps = case.arguments.get("eps", case.report.conventions.get("eps", 1e-6))
    return x, x.square().mean(-1, keepdim=True) + eps


def _row_scales(given: Tensor, exact: Tensor) -> float:
    """The error of the rows' scales: the root mean square of (given . exact) / (exact . exact) - 1."""
    scale = (given * exact).sum(-1) / exact.square().sum(-1) - 1
    return float(scale.square().mean().sqrt())


def _second_norm(case: Case) -> None:
    """Entries of about 400 in float16, which cannot hold their squares: a norm in float16 gives zero or NaN."""
    assert case.explanation is not None
    spec, reading = case.explanation.spec, case.explanation.reading
    if (
        case.explanation.cost
        or spec.sandwich
        or spec.layer_scale
        or spec.norm2 != "rms"
        or "norm_without_upcast" in case.report.findings
        or not {"v", "down"} <= set(reading)
    ):
        return
    try:
        built = case.low("float16")
        raw = built.draw(case.generator, torch.float16)
        for name in ("v", "v_bias", "o_bias"):
            if name in reading:
                reading[name].write(raw, torch.zeros(()))
        reading["down"].write(raw, reading["down"].read(raw) * 100)
        noise = [case.single(SINGLE, dtype=torch.float64) for _ in range(2)]
        x = (noise[0].sign() * 400 + noise[1] * 20).half()
        y = built.run(raw, x).y.double()
    except LearnerError:
        return  # many operations have no float16 on CPUs, which is not a fault
    wide: Raw = {name: value.double() for name, value in raw.items()}
    expected = case.expected(wide, x.double()) - x.double()
    gap = ((y - x.double()) - expected).abs().nan_to_num(1e9).max() / expected.abs().max()
    if gap > 0.5:
        case.report.found(
            "norm_without_upcast", "in float16, norm2 overflows for entries of 400, because it squares them in float16"
        )
    case.report.check("norm in float16", bool(gap <= 0.5), "entries of 400 in norm2")


def _angles(case: Case) -> None:
    """A bfloat16 block at positions of about 1,000: rounding cos and sin costs 1e-2, rounding angles everything."""
    assert case.explanation is not None
    spec = case.explanation.spec
    if (
        not spec.rope_on
        or spec.rope_input != "no"
        or {"rope_bf16_tables", "token_positions_ignored", "retains_state"} & set(case.report.findings)
    ):
        return
    arguments = {"max_seq_len": 2048} if case.learner.takes("max_seq_len") else {}
    built = case.low("bfloat16", **arguments)
    tables_dtype(case, built)
    raw = built.draw(case.generator, torch.bfloat16)
    for name in ("q", "k"):  # sharp attention, because errors of many keys would average out
        case.explanation.reading[name].write(raw, case.explanation.reading[name].read(raw) * 2)
    near = torch.arange(8)
    if built.positions_name is not None:
        length, far = 8, near * 111 + 1003
    elif arguments:
        length, far = 600, torch.arange(600)
    else:
        case.report.skip("angles in bfloat16", "there is no argument for positions or a length")
        return
    errors = {}
    for name, positions, seq in (("near", near, 8), ("far", far, length)):
        x = case.x(SINGLE if seq == len(near) else 2, seq, dtype=torch.bfloat16)  # enough sequences for a stable mean
        y = built.run(raw, x, positions=positions if built.positions_name else None).y
        wide: Raw = {key: value.double() for key, value in raw.items()}
        expected = case.expected(wide, x.double(), positions)
        rest = case.expected(wide, x.double(), positions * 0)
        last = slice(-4, None)
        moved = (expected - rest)[:, last].square().mean().sqrt()
        errors[name] = float((y.double() - expected)[:, last].square().mean().sqrt() / moved)
    good = not errors["far"] > max(0.3, 1.5 * errors["near"])  # correct ones have at most 0.03, near and far
    if not good and not _promises(case, "bfloat16") and any(one["dtype"] == "bfloat16" for one in built.tensors):
        case.report.conventions["tables"] = "block.to(bfloat16) rounds them, so large positions are imprecise"
        case.report.skip("angles in bfloat16", "block.to(bfloat16) rounds the tables that the block keeps as buffers")
        return
    if not good:
        case.report.found(
            "rope_bf16_tables",
            f"in a bfloat16 block, the effect of positions is off by {errors['far']:.0%} at positions up to "
            f"{int(far.max())}, and by {errors['near']:.0%} at 0 to 7",
        )
    case.report.check("angles in bfloat16", good, f"positions up to {int(far.max())}")


def tables_dtype(case: Case, built: Built) -> None:
    """Report the dtype in which a bfloat16 block keeps its tables, as a convention."""
    kept = sorted({one["dtype"] for one in built.tensors})
    if kept:
        case.report.conventions["tables_kept_in"] = ", ".join(kept)
