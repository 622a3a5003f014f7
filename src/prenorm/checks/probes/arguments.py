"""Whether arguments have their effect: rope_theta, positions, and key-value heads."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..search.explain import explain
from ..search.explanation import UnexplainedError
from ..search.trials import agrees
from ..subject.child import meanings
from ..subject.learner import Built
from ..subject.raised import LearnerError, refuses
from ..subject.recipe import Argument, Line
from .case import BESIDE_NUMBERS, MAX_SEQ_LEN, Case, raised
from .diagnosis import faults
from .lengths import coinciding, what_coincides

THETA_SHOWS = 1e-3  # relative to the output; another theta changes tens of times as much
REFUSALS = ("AssertionError", "ValueError", "NotImplementedError")
"""What a constructor raises to refuse an argument on purpose."""


def rotation(case: Case) -> None:
    """Where nothing is rotated, because what would rotate raises an error: that is the fault."""
    if "missing_rope" not in case.report.faults():
        return
    recipe = case.learner.recipe
    for line, when in _switched_on(case):
        case.learner.recipe = replace(recipe, build=line)
        error = _raised_at(case, None)
        case.learner.recipe = recipe
        if error is not None and (not refuses(error) or _is_of_a_package(error)):
            _errs(case, f"nothing is rotated, and {when}", error)
            return
    name = None if case.built is None else case.built.positions_name
    error = _raised_at(case, torch.arange(case.tokens).expand(2, -1)) if name is not None else None
    if error is not None:
        _errs(case, f"nothing is rotated without {name}, and with them", error)


def _is_of_a_package(error: LearnerError) -> bool:
    """Whether an installed package raises it that is called by code which is not installed."""
    files = [str(one["file"]) for one in error.error.get("frames") or ()]
    return bool(files) and "site-packages" in files[-1] and not all("site-packages" in one for one in files)


def _switched_on(case: Case) -> Iterator[tuple[Line, str]]:
    """Lines that build it with a switch for the rotation that is off, and how to say that."""
    line, there = case.learner.recipe.build, {one.name for one in case.learner.recipe.build.arguments}
    for one in case.learner.made["constructor"] or () if line.callee == case.learner.made["name"] else ():
        if one["default"] is False and meanings.ROPE_FLAG.search(one["name"]) and one["name"] not in there:
            switch = Argument(one["name"], "True", True)
            yield replace(line, arguments=(*line.arguments, switch)), f"with {one['name']}=True"


def _raised_at(case: Case, positions: Tensor | None) -> LearnerError | None:
    """What it raises in float32, at positions of every shape if there are any; None if it runs."""
    x = case.x(2, case.tokens, dtype=torch.float32)
    try:
        built = case.build()
        if positions is None:
            built.run(None, x)
        else:
            built.run_at(positions, {}, x)
    except LearnerError as error:
        return error
    return None


def _errs(case: Case, when: str, error: LearnerError) -> None:
    """Report the error in place of a rotation that is missing."""
    id = f"{error.stage}_error"
    del case.report.findings["missing_rope"]
    case.report.errors.setdefault(id, error.error)
    case.report.found(id, f"{when} it raises {raised(error)}")
    case.report.check("rotation", False, f"raises {raised(error)}")


def rope_theta(case: Case) -> None:
    """Another theta."""
    if not case.learner.takes("rope_theta"):
        case.report.skip("rope_theta", "the constructor has no such argument")
        return
    if not _rotates(case):
        case.report.skip("rope_theta", "nothing is rotated")
        return
    if _handed_in_without_theta(case):
        case.report.skip("rope_theta", "the rotation is handed in, and takes none")
        return
    assert case.explanation is not None
    theta, usual = 300.0, case.explanation.spec.theta
    raw, x = case.raw, case.x(2, case.tokens)
    assert case.built is not None
    if not case.agrees(case.built.run(raw, x).y, case.expected(raw, x), x):
        case.report.skip("rope_theta", "the numbers for this input are not explained")
        return
    y = case.wide(rope_theta=theta).run(raw, x).y
    good = agrees(y, case.expected(raw, x, theta=theta), x, THETA_SHOWS)
    if not good and case.agrees(y, case.expected(raw, x), x):
        case.report.found("rope_theta_ignored", f"rope_theta={theta:g} gives the same numbers as {usual:g}")
    elif not good:
        case.report.found("rope_wrong_frequency", f"with rope_theta={theta:g} the frequencies are wrong")
    case.report.check("rope_theta", good, f"{theta:g} against {usual:g}")


def _handed_in_without_theta(case: Case) -> bool:
    """Whether a rotation of the file is handed in that gets neither theta nor a configuration."""
    rotations = {one["name"] for one in case.learner.made["helpers"] if one["kind"] in ("class", "function")}
    recipe = case.learner.recipe
    handed = [one.uses for one in (*recipe.build.arguments, *recipe.call.arguments) if one.uses & rotations]
    return bool(handed) and not any(uses & {"theta", "config"} for uses in handed)


def _rotates(case: Case) -> bool:
    assert case.explanation is not None
    return bool(case.explanation.spec.rope_on) or case.explanation.spec.rope_input != "no"


def token_positions(case: Case) -> None:
    """Positions with gaps, out of order, and different in each sequence of the batch."""
    built, name = case.built, "token_positions"
    assert built is not None
    if built.positions_name is None:
        if case.target.needs_positions:
            case.report.found(
                "token_positions_ignored", "forward has no argument for positions, such as token_positions=None"
            )
        case.report.skip(name, "forward takes none")
        return
    if not _rotates(case):
        case.report.skip(name, "nothing is rotated")
        return
    limit = int(case.arguments.get("max_seq_len", MAX_SEQ_LEN)) - ("positions_off_by_one" in case.report.findings)
    if limit < case.tokens:
        case.report.skip(name, f"it runs on {case.tokens} tokens only, and the last position raises")
        return
    draws = _draws(case, limit, 2, case.tokens)
    x = case.x(2, case.tokens)
    try:
        used, answer = built.run_at(draws, case.raw, x)
    except LearnerError as error:
        if case.learner.recipe.call.text is not None:  # a line that somebody gave may use positions for a cache as well
            case.report.skip(name, f"with other positions the given call raises {raised(error)}")
            return
        case.report.errors["forward_error"] = error.error
        case.report.found("forward_error", f"with token_positions up to {draws.max()} it raises {raised(error)}")
        case.report.check(name, False, f"raises {raised(error)}")
        return
    good = case.agrees(answer.y, case.expected(case.raw, x, used), x)
    if not good and case.agrees(answer.y, case.expected(case.raw, x), x):
        case.report.found(
            "token_positions_ignored", f"positions {used[0].tolist()} give the same numbers as 0, 1, 2, ..."
        )
    elif not good and used.dim() == 2 and case.agrees(answer.y, case.expected(case.raw, x, used[:1]), x):
        case.report.found("token_positions_ignored", "every sequence is rotated by the positions of the first one")
    elif not good:
        shifted = {shift: case.expected(case.raw, x, used, key_shift=shift) for shift in ("the next", "the one before")}
        if any(case.agrees(answer.y, value, x) for value in shifted.values()):
            case.report.found("positions_off_by_one", "with explicit positions, keys are off by one")
        else:
            case.report.puzzled(f"with token_positions {used[0].tolist()} the numbers are wrong")
    case.report.check(name, good, f"with gaps and out of order, as {tuple(used.shape)}")
    if good and (used.dim() == 2 or case.learner.recipe.call.argument("positions") is not None):
        _of_each_sequence(case, built, limit, by_row=used.dim() == 2)


def _of_each_sequence(case: Case, built: Built, limit: int, *, by_row: bool) -> None:
    """Positions (batch, seq) where the batch equals another size: they may be taken as those of the heads.

    by_row: whether the block takes such positions at all. One that takes (seq,) alone is only told.
    """
    if case.report.faults() - BESIDE_NUMBERS:
        case.report.skip("token_positions of each sequence", "not compared, because other faults change the numbers")
        return
    wrong = []
    for batch, length in coinciding(case):
        positions, x = _draws(case, limit, batch, length), case.x(batch, length)
        try:
            y = built.run(case.raw, x, positions=positions).y
        except LearnerError:
            continue  # which says that they are not taken
        if not case.agrees(y, case.expected(case.raw, x, positions), x):
            wrong.append((batch, length))
    said = (
        f"{wrong[0]}, different for each sequence, give wrong numbers{what_coincides(case, wrong[:1])}" if wrong else ""
    )
    if not by_row:
        more = f"; {said}, and no error" if said else ""
        case.report.conventions["token_positions"] = f"(seq,), the same for every sequence{more}"
        return
    if wrong:
        case.report.found("wrong_at_some_lengths", f"token_positions {said}")
    case.report.check("token_positions of each sequence", not wrong, "batches that equal another size")


def _draws(case: Case, limit: int, batch: int, length: int) -> Tensor:
    """Positions with gaps and out of order, different in each sequence."""
    return torch.stack([torch.randperm(limit, generator=case.generator)[:length] for _ in range(batch)])


def grouped_heads(case: Case) -> None:
    """Fewer key-value heads than heads."""
    if not case.learner.takes("num_kv_heads"):
        case.report.skip("grouped heads", "the constructor has no argument for key-value heads")
        return
    assert case.explanation is not None
    if case.explanation.cost > 1:  # a search for two faults at once, and once more with other sizes, is a long one
        case.report.skip("grouped heads", "not compared, because other faults change the numbers")
        return
    sizes = replace(case.sizes, num_kv_heads=2)
    try:
        built = case.wide(sizes=sizes)
        if _is_of_a_configuration(case) and _shapes(built) == _shapes(case.wide()):
            case.report.conventions["grouped_heads"] = "the configuration's entry is not used"
            case.report.skip("grouped heads", "the configuration has an entry for key-value heads, the block none")
            return
        explanation = explain(built, case.generator, work=case.work, **case.precision)
    except UnexplainedError as error:
        if not error.complete:
            case.report.skip("grouped heads", f"not compared: it ended at {error.step}")
            return
        case.report.puzzled(f"with {sizes.num_heads} heads and 2 key-value heads, at {error.step}")
        case.report.check("grouped heads", False, "with 2 key-value heads no known fault explains the numbers")
        return
    except LearnerError as error:
        if error.stage == "constructor" and error.error["type"] in REFUSALS:
            case.report.skip(
                "grouped heads", f"2 key-value heads for {sizes.num_heads} heads are refused: {raised(error)}"
            )
            return
        case.report.errors.setdefault(f"{error.stage}_error", error.error)
        case.report.found(
            f"{error.stage}_error", f"2 key-value heads for {sizes.num_heads} heads raise {raised(error)}"
        )
        case.report.check("grouped heads", False, raised(error))
        return
    if (apart := faults(explanation).get("gqa_tiled_instead_of_repeated")) is not None:  # no convention
        case.report.found("gqa_tiled_instead_of_repeated", f"with 2 key-value heads, {apart}")
        case.report.check("grouped heads", False, apart)
        return
    tiled = explanation.spec.tiled
    case.report.conventions["grouped_heads"] = "tiled" if tiled else "repeated"
    if tiled and case.target.tiled is False:
        case.report.found(
            "gqa_tiled_instead_of_repeated", "with 2 key-value heads, query heads 0 and 1 read different ones"
        )
    case.report.check(
        "grouped heads", True, "tiled: head h reads h mod 2" if tiled else "each is read by neighbouring heads"
    )


def _is_of_a_configuration(case: Case) -> bool:
    """Whether key-value heads are an entry of a configuration, which may serve other classes."""
    build = case.learner.recipe.build
    return build.text is None and all(one.value != "num_kv_heads" for one in build.arguments)


def _shapes(built: Built) -> list[tuple[str, tuple[int, ...]]]:
    return [(one["name"], tuple(one["shape"])) for one in built.parameters]
