"""The judgement: every check in order, and the verdict on a block that fails before it can be checked."""

import contextlib
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from .faults import FAULTS
from .locate.place import TOLD, place
from .probes import (
    arguments,
    behaviour,
    defaults,
    device,
    diagnosis,
    eps,
    gradients,
    initial,
    lengths,
    masks,
    norm_rounding,
    numbers,
    precision,
    training,
)
from .probes.case import FLOAT32_TOLERANCE, MAX_SEQ_LEN, Case, Report, raised
from .source.code import Code
from .source.parse import MAX_CHARACTERS
from .source.text import Text
from .start.refusals import NoBlockError, UnknownArgumentsError
from .start.start import start
from .subject.child.missing_packages import NotInstalledError
from .subject.learner import SINGLE, Built, Learner
from .subject.protocol import EndedError, Subject
from .subject.raised import LearnerError, MissingError
from .targets import TARGETS, Target
from .verdict import INTERNAL_ERROR, Finding, Verdict

OTHER_LENGTHS = (8, 16, MAX_SEQ_LEN)
FEW_TOKENS = (1, 2, 3, 4, 8)
MOST_FILES = 40
OF_ONE_CALL = 1 / 4
"""The share of the time limit from which one call, or the import, is taken for endless."""


def judge(
    subject: Subject,
    code: Code,
    *,
    target: str | None = None,
    seed: int | None = None,
    deadline: float = math.inf,
    build: str | None = None,
    call: str | None = None,
) -> Verdict:
    """Judge the class that code names. Raises learner.MissingError if there is no such class.

    build, call: how to build and call it, if a person says so (see subject/recipe.py).

    deadline: in time.monotonic(), for everything; after it the verdict is a timeout with the findings so far.
    """
    started = time.monotonic()
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    report = Report()
    case = Case(Learner(subject, deadline), Target() if target is None else TARGETS[target], generator, report)
    at_import: dict[str, str] = {}
    out_of_time = False
    try:
        case.learner.load(code)
        report.check("import", True, "the file was imported, and has the class")
        at_import = dict(case.learner.made["notes"])
        _say(report, "at_import", at_import)
        text = Text(code)
        _judge(case, start(case, build, call, text.source), text, _texts(code))
    except LearnerError as error:
        report.errors.setdefault(f"{error.stage}_error", error.error)
        if error.error["type"] == NotInstalledError.__name__:
            report.found(f"{error.stage}_error", error.error["message"], counts=False)
        elif error.stage == "constructor" and error.error["type"] == "refused":
            report.found("unreadable", error.error["message"], counts=False)
        elif error.stage != "forward" or "sequence_length_fixed" not in report.findings:
            report.found(f"{error.stage}_error", raised(error))
        report.check(error.stage, False, raised(error))
    except NoBlockError as error:
        report.found("unreadable", str(error), counts=False, mend=error.mend)
        report.check("constructor", False, str(error))
    except UnknownArgumentsError as error:
        if isinstance(error.__cause__, LearnerError):  # it may be a fault of the block all the same: the line says more
            report.errors["arguments_unknown"] = error.__cause__.error
        report.found("arguments_unknown", str(error), counts=False)
        report.check("arguments", False, str(error))
    except EndedError as error:
        if error.reason == "timeout":
            out_of_time = True
            _out_of_time(report, error, deadline - started)
        else:
            id = {"load": "import_error", "build": "constructor_error"}.get(error.during, "forward_error")
            report.found(id, f"the process that runs it ended: {error.detail}{_when(error)}")
            report.errors[id] = {}  # no line is known
        report.check("the process", False, str(error))
    except (MissingError, ConfigError):
        raise
    except Exception as error:  # our own mistake is reported, with the findings so far
        internal_error(report, error)
    later = {name: note for name, note in case.learner.made.get("notes", {}).items() if name not in at_import}
    _say(report, "without_gpu", later)
    findings = tuple(_finding(case, code, id) for id in report.findings)
    return Verdict(
        subject=f"{code.file or code.module}:{code.name}",
        findings=findings,
        conventions=report.conventions,
        checks=tuple(report.checks),
        build=case.learner.recipe.build.written(frozenset(case.arguments)),
        call=case.learner.recipe.call.written(),
        seconds=time.monotonic() - started,
        judged=case.explanation is not None and not out_of_time,
    )


def _out_of_time(report: Report, error: EndedError, limit: float) -> None:
    """Report the end of the time: a fault of the block only where one call of its own took long."""
    if error.waited >= OF_ONE_CALL * limit:
        one = "the import of its file" if error.during == "load" else "one call"
        report.found("timeout", f"{error.detail}, {error.waited:.3g} seconds of it in {one}")
        return
    evidence = f"{error.detail}, but no call of it took long: all checks together did"
    report.found("timeout", evidence, counts=False, mend="raise --timeout")
    report.errors["timeout"] = {}  # no line is known


def _when(error: EndedError) -> str:
    return {"load": ", while its file was imported", "build": ", while it was built"}.get(error.during, "")


def _say(report: Report, convention: str, notes: Mapping[str, str]) -> None:
    if notes:
        report.conventions[convention] = "; ".join(f"{name}: {note}" for name, note in notes.items())


def internal_error(report: Report, error: Exception) -> None:
    """Report an error of the checker itself as a finding, with its location."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    evidence = f"{type(error).__name__}: {str(error)[:200]} (at {Path(at.filename).name}:{at.lineno})"
    report.found(INTERNAL_ERROR, evidence)
    report.check("the checker", False, evidence)


def _finding(case: Case, code: Code, id: str) -> Finding:
    evidence, error = case.report.findings[id], case.report.errors.get(id)
    held = [] if case.built is None else [one["name"] for one in [*case.built.parameters, *case.built.tensors]]
    hints = [name for name in held if name in evidence] or _weights_of(case, evidence)
    text = Text(code)
    where = text.innermost(error) if error is not None and id in TOLD else None
    unknown = error is not None and (id == "import_error" or not error)
    if where is None and text.source and not unknown:
        owner = next((case.classes[name] for name in hints if name in case.classes), "")
        recipe = case.learner.recipe
        used = sorted(recipe.build.uses | recipe.call.uses)
        passed = text.numbers(error) if error is not None and id == "wrong_device_buffer" else ()
        guess = place(
            id,
            text.source,
            code.file or "",
            code.name,
            evidence=evidence,
            hints=hints,
            owner=owner,
            used=used,
            passed=passed,
            made_of=case.made_of,
        )
        where = None if guess is None else text.place(guess.line)
        if where is None and error is not None:
            where = text.innermost(error)
    return Finding(
        id=id,
        message=FAULTS[id].meaning,
        evidence=evidence,
        mend=case.report.mends.get(id, FAULTS[id].mend),
        place=where,
        counts=id not in case.report.choices,
    )


def _weights_of(case: Case, evidence: str) -> list[str]:
    """The parameters of the norms that an evidence speaks of."""
    reading = {} if case.explanation is None else case.explanation.reading
    norms = [reading[norm] for norm in ("norm1", "norm2") if norm in evidence and norm in reading]
    return [name for norm in norms for name in norm.parameters]


def _texts(code: Code) -> str:
    """The source of the file and of its neighbours."""
    texts = [Text(code).source]
    with contextlib.suppress(OSError, ValueError):
        others = sorted(Path(code.file).parent.glob("*.py"))[:MOST_FILES] if code.file else []
        texts += [
            path.read_bytes().decode(errors="replace")
            for path in others
            if str(path) not in code.files and path.is_file() and path.stat().st_size <= MAX_CHARACTERS
        ]
    return "\n".join(texts)


def _judge(case: Case, built: Built, text: Text, texts: str) -> None:
    sizes = case.sizes
    case.report.check("constructor", True, f"d_model={sizes.d_model}, num_heads={sizes.num_heads}, d_ff={sizes.d_ff}")
    initial.constructed(case, texts)
    raw = built.draw(case.generator, torch.float32)
    built = _first_call(case, built)
    defaults.defaults(case, built, text, texts)
    repeatable = behaviour.repeated_calls(case, built, raw)
    behaviour.input_kept(case, built, raw)
    behaviour.dropout_argument(case, raw, texts)
    if repeatable or built.fresh:
        behaviour.batch_independence(case, built, raw)
        behaviour.leading_dims(case, built, raw)
        if "sequence_length_fixed" not in case.report.findings:
            lengths.sequence_lengths(case, built, raw)
        training.two_steps(case, built, raw)
    precision.dtypes(case)
    device.devices(case)
    if not repeatable and not built.fresh:
        case.report.skip("the numbers", "they differ from call to call")
        initial.weights_of_norms(case, norm_rounding.norms_by_themselves(case))
        return
    _widest(case, built)
    numbers.numbers(case)
    if case.explanation is None:
        gradients.without_explanation(case)
        initial.weights_of_norms(case, norm_rounding.norms_by_themselves(case))
        return
    _name_by_traces(case)
    initial.widths(case)
    initial.norm_weights(case)
    for id, evidence in diagnosis.against_target(case.explanation, case.target):
        case.report.found(id, evidence)
    for check in (
        eps.eps,  # first: the others expect the eps that it fits
        lengths.numbers,
        gradients.gradients,
        arguments.rotation,
        arguments.rope_theta,
        arguments.token_positions,
        arguments.grouped_heads,
        masks.causal_argument,
        masks.mask_argument,
        masks.large_scores,
        precision.low_precision,
    ):
        try:
            check(case)
        except LearnerError as error:  # the other checks go on
            name, what = f"{error.stage}_error", check.__name__.replace("_", " ")
            case.report.errors.setdefault(name, error.error)
            is_missing = error.error["type"] == NotInstalledError.__name__
            case.report.found(name, f"in the check of {what}: {raised(error)}", counts=not is_missing)
            case.report.check(what, False, raised(error))


def _first_call(case: Case, built: Built) -> Built:
    """One call in float32; the lengths at which the block runs are stored in the case."""
    try:
        built.run(None, case.x(2, case.tokens, dtype=torch.float32))
    except LearnerError as error:
        built = _at_another_length(case, error) or built
    runs = (length for length in FEW_TOKENS if _runs(case, length, batch=SINGLE, fixed=built.fixed_length))
    single = next(runs, case.tokens)
    case.lengths = built.lengths = replace(case.lengths, single=single)
    case.report.check("forward", True, "a batch of sequences returns a tensor of the same shape")
    return built


def _at_another_length(case: Case, error: LearnerError) -> Built | None:
    """Find a length that runs, as the usual one does not; raises the error if there is none.

    Gives another block if it has to be built for each length.
    """
    usual = case.tokens
    case.report.errors["sequence_length_fixed"] = error.error
    length = next((length for length in OTHER_LENGTHS if _runs(case, length)), None)
    if length is not None:
        case.report.found("sequence_length_fixed", f"{length} tokens run, {usual} tokens raise {raised(error)}")
    if case.learner.takes("max_seq_len") and _runs(case, usual, fixed=True):
        case.arguments["max_seq_len"] = usual
        if length is None:
            evidence = f"with max_seq_len={MAX_SEQ_LEN}, {usual} tokens raise {raised(error)}"
            case.report.found("sequence_length_fixed", evidence)
        shorter = case.build()
        shorter.fixed_length = True
        return shorter
    if length is None:
        raise error
    case.lengths = replace(case.lengths, usual=length)
    return None


def _turns(case: Case, x: Tensor) -> bool:
    """Whether the output changes if tables, sines and cosines are replaced by other numbers."""
    assert case.built is not None
    plain, scrambled = (case.built.run(case.raw, x, scramble=seed).y for seed in (None, 1))
    return not case.agrees(plain, scrambled, x)


def _runs(case: Case, length: int, *, batch: int = 2, fixed: bool = False) -> bool:
    """Whether a new block runs on so many sequences of this length. fixed: one that is built for it."""
    try:
        built = case.build()
        built.fixed_length = fixed
        built.run(None, case.x(batch, length, dtype=torch.float32))
    except LearnerError:
        return False
    return True


def _widest(case: Case, built: Built) -> None:
    """Build the block for comparing numbers: in float64, or in float32 if it does not run in float64."""
    case.built = built
    try:
        wide = case.wide()
        case.raw = wide.draw(case.generator, torch.float64)
        wide.run(case.raw, case.x(2, case.tokens))
        case.built = wide
    except LearnerError as error:
        case.dtype, case.tolerance = torch.float32, FLOAT32_TOLERANCE
        case.built = case.build()
        case.built.fresh, case.built.fixed_length = built.fresh, built.fixed_length
        case.raw = case.built.draw(case.generator, torch.float32)
        case.report.skip("float64", f"numbers are compared in float32, because in float64 it raises {raised(error)}")


def _name_by_traces(case: Case) -> None:
    """Tell apart faults with the same numbers by what the process did."""
    assert case.built is not None
    assert case.explanation is not None
    findings, choices = case.report.findings, case.report.choices
    x = case.x(2, case.tokens)
    if "norm_weight_missing" in findings:
        trace = case.built.run(case.raw, x, trace=True)
        if trace.modules_created or (case.sizes.d_model,) in trace.created:
            choices.discard("norm_weight_missing")
            findings["norm_created_each_call"] = "forward creates it anew each time; " + findings.pop(
                "norm_weight_missing"
            )
    attention = {"softmax_wrong_dim", "wrong_head_split", "heads_not_merged", "mask_value_too_small"} & set(findings)
    if case.explanation.spec.mask == "none" and not attention and case.built.run(case.raw, x, trace=True).masked:
        case.report.found("mask_ignored", "scores are filled by a mask, but no output shows it")
    unturned = "missing_rope" in findings and "rope_on_values" not in findings
    if unturned and _turns(case, x) and not _turns(case, x[:, :1]):  # the softmax of a single score is 1 in any case
        findings["rope_over_heads"] = "cos and sin are used, but positions have no effect: all tokens are rotated alike"
        del findings["missing_rope"]
