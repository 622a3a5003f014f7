"""Blocks in other dtypes: the output's dtype, norms in float16, and whether angles survive bfloat16."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formula.parameters import Raw
from ..subject.child.dtypes import CAST, COMBINED, KEPT, MADE, WEIGHT
from ..subject.learner import SINGLE, Built
from ..subject.raised import Description, LearnerError
from .case import Case, raised
from .norm_rounding import norm1_in_the_block, norms_by_themselves, promises

FAR = 600  # tokens, where none can be handed a position: bfloat16 has every second number from 256 on
OTHERWISE = 0.1  # of what positions do: angles in float32 are off by far less


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong in another dtype, and the fix if it is known. runs: whether forward gives an output."""

    text: str
    mend: str | None = None
    runs: bool = False


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
        if not by_argument and moved is not None:  # without a dtype argument, nothing promises that it runs in another
            case.report.found("wrong_dtype", moved.text, counts=moved.runs, mend=moved.mend)
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
        return _Problem(f"{text}: {what}" if what else text, mend, runs=True)
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
    """The norms and the rotation of a bfloat16 block, by the constructor's dtype if that runs, otherwise by .to()."""
    assert case.explanation is not None
    norm1 = case.explanation.reading.get("norm1")
    compared: frozenset[str] = frozenset()
    if case.report.conventions.get("to_bfloat16", "runs") != "runs":
        case.report.skip("low precision", "a bfloat16 block does not run")
    else:
        try:
            if norm1_in_the_block(case) and norm1 is not None:
                compared = frozenset(norm1.parameters)
            _second_norm(case)
            _angles(case)
        except LearnerError as error:
            case.report.skip("low precision", raised(error))
    norms_by_themselves(case, but=compared)


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
    elif arguments or _runs(built, raw, case.x(2, FAR, dtype=torch.bfloat16)):
        length, far = FAR, torch.arange(FAR)
    else:
        case.report.skip("angles in bfloat16", f"no argument for positions or a length, and {FAR} tokens do not run")
        return
    errors = {}
    for name, positions, seq in (("near", near, 8), ("far", far, length)):
        x = case.x(SINGLE if seq == len(near) else 2, seq, dtype=torch.bfloat16)  # enough sequences for a stable mean
        rows = positions.expand(len(x), -1)
        y = _at(built, raw, x, rows)
        wide: Raw = {key: value.double() for key, value in raw.items()}
        expected = case.expected(wide, x.double(), positions)
        rest = case.expected(wide, x.double(), positions * 0)
        errors[name] = _off(y, expected, rest)
        meant = bool(arguments) or built.positions_name is not None  # for so many
        if name == "far" and not meant and _off(case.wide().run(wide, x.double()).y, expected, rest) > OTHERWISE:
            case.report.skip("angles in bfloat16", "in float64, too, its numbers are others there, as of a window")
            return
    good = not errors["far"] > max(0.3, 1.5 * errors["near"])  # correct ones have at most 0.03, near and far
    kept = [*built.tensors, *(one for one in built.parameters if not one["requires_grad"])]
    if not good and not promises(case, "bfloat16") and any(one["dtype"] == "bfloat16" for one in kept):
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


def _off(y: Tensor, expected: Tensor, rest: Tensor) -> float:
    """The error of the last outputs, relative to what positions do to them; rest: the outputs with all at zero."""
    wrong, moved = (y.double() - expected)[:, -4:], (expected - rest)[:, -4:]
    return float(wrong.square().mean().sqrt() / moved.square().mean().sqrt())


def _at(built: Built, raw: Raw, x: Tensor, rows: Tensor) -> Tensor:
    """The output at positions (batch, seq), which are handed in if they can be."""
    return (built.run(raw, x) if built.positions_name is None else built.run_at(rows, raw, x)[1]).y


def _runs(built: Built, raw: Raw, x: Tensor) -> bool:
    try:
        built.run(raw, x)
    except LearnerError:
        return False
    return True


def tables_dtype(case: Case, built: Built) -> None:
    """Report the dtype in which a bfloat16 block keeps its tables, as a convention."""
    kept = sorted({one["dtype"] for one in built.tensors})
    if kept:
        case.report.conventions["tables_kept_in"] = ", ".join(kept)
