"""Sequence lengths: whether the block runs at each, also in larger batches, and whether its numbers are right.

Some packages (einx) compile anew for each shape. Where a new length takes that long, only the lengths are tried that
tell most; the report says which.
"""

import statistics
import time
from collections.abc import Collection

import torch
from torch import Tensor

from ..formula.parameters import Raw
from ..search.trials import agrees
from ..subject.learner import SINGLE, Built
from ..subject.raised import LearnerError
from .case import BESIDE_NUMBERS, FLOAT32_TOLERANCE, MAX_SEQ_LEN, Case, raised

SECONDS = 3.0
"""What lengths beside the telling ones may take; of usual blocks all of them take hundredths of a second."""
SQUEEZED = "squeeze() drops every axis of size 1, also that of one token; pass the axis that is meant"


def sequence_lengths(case: Case, built: Built, raw: Raw) -> None:
    """Every length up to max_seq_len, or up to MAX_SEQ_LEN if there is no limit."""
    longest = int(case.arguments.get("max_seq_len", MAX_SEQ_LEN))
    batch = 2 if "batch_of_one" in case.report.findings else 1
    telling = sorted({1, case.sizes.num_heads, case.sizes.head_dim, longest} & {*range(1, longest + 1)})
    others = sorted({*range(1, longest + 1)} - {*telling})
    failed: dict[int, LearnerError] = {}
    stale: dict[int, LearnerError] = {}

    def seconds_of(length: int) -> float:
        before = time.monotonic()
        try:
            built.run(raw, case.x(batch, length, dtype=torch.float32))
        except LearnerError as error:
            (stale if case.runs(raw, (batch, length)) else failed)[length] = error
        return time.monotonic() - before

    usual = statistics.median(map(seconds_of, telling))  # one call may take longer for another reason
    case.tried = telling
    if failed or stale or usual * len(others) <= SECONDS:  # all that fail name the fault
        for length in others:
            seconds_of(length)
        case.tried = sorted(telling + others)
    if stale:
        built.fresh = True
        _report(case, "retains_state", "after calls with other lengths", stale)
    if failed:
        only_last = list(failed) == [longest]
        id = "positions_off_by_one" if only_last and case.learner.takes("max_seq_len") else "sequence_length_fixed"
        _report(case, id, f"of the lengths 1 to {longest}", failed)
    reason = f"1 to {longest} tokens"
    if case.tried == telling:
        reason = f"{', '.join(map(str, telling))} of {reason}; each length that is new takes {usual:.1f} s"
    case.report.check("sequence lengths", not (failed or stale), reason)
    several_sequences(case, built, raw, failed)


def several_sequences(case: Case, built: Built, raw: Raw, failed: Collection[int]) -> None:
    """Batches of other sizes, at lengths that run. One sequence may hide what is lost: its axis is broadcast again.

    failed: the lengths that do not run in the smallest batch.
    """
    for batch, length in [(SINGLE, 1), *coinciding(case)]:
        if length in failed or length > int(case.arguments.get("max_seq_len", MAX_SEQ_LEN)):
            continue
        try:
            built.run(raw, case.x(batch, length, dtype=torch.float32))
        except LearnerError as error:
            shape = f"{batch} sequences of {length} token{'s' * (length > 1)}"
            if case.runs(raw, (batch, length)):
                built.fresh = True
                id, evidence = "retains_state", f"after calls with other batches {shape} raise {raised(error)}"
            else:
                id = "sequence_length_fixed" if length == 1 else "forward_error"
                evidence = f"{shape} raise {raised(error)}, where a smaller batch runs"
                evidence += what_coincides(case, [(batch, length)] if length > 1 else [])
            case.report.errors.setdefault(id, error.error)
            case.report.found(id, evidence, mend=SQUEEZED if length == 1 else None)
            case.report.check("batches of other sizes", False, evidence)
            return
    case.report.check("batches of other sizes", True, "one token, and batches that equal another size")


def _report(case: Case, id: str, when: str, errors: dict[int, LearnerError]) -> None:
    shown, first = sorted(errors), errors[min(errors)]
    case.report.errors.setdefault(id, first.error)
    case.report.found(id, f"{when} it fails at {', '.join(map(str, shown[:8]))}: {raised(first)}")


def numbers(case: Case) -> None:
    """The numbers at these lengths, and for batches that equal another size, where axes may be confused."""
    assert case.built is not None
    longest = int(case.arguments.get("max_seq_len", MAX_SEQ_LEN)) - ("positions_off_by_one" in case.report.findings)
    least = 2 if {"batch_of_one", "batch_coupled"} & set(case.report.findings) else 1
    tried = [length for length in case.tried or range(1, longest + 1) if length <= longest]
    wrong = []
    for batch, length in [*((least, length) for length in tried), *coinciding(case)]:
        x = case.x(batch, length)
        try:
            y = case.built.run(case.raw, x).y
        except LearnerError:
            continue  # the check of lengths and batches reports it
        if not case.agrees(y, case.expected(case.raw, x), x) and not _agrees_in_float32(case, x):
            wrong.append((batch, length))
    if not wrong:
        every = f"1 to {longest}" if len(tried) == longest else ", ".join(map(str, tried))
        case.report.check("numbers at every length", True, f"{every} tokens, several batches")
        return
    if case.report.faults() - BESIDE_NUMBERS:  # these may be correct at some lengths
        case.report.skip("numbers at every length", "not compared, because other faults change the numbers")
        return
    shown = ", ".join(f"{length} tokens in a batch of {batch}" for batch, length in wrong[:4])
    case.report.check("numbers at every length", False, f"wrong numbers for {shown}")
    case.report.found("wrong_at_some_lengths", f"the numbers are wrong for {shown}{what_coincides(case, wrong)}")


def _agrees_in_float32(case: Case, x: Tensor) -> bool:
    """Whether the numbers for this x are right in float32: a block is only promised to run in what it is written for.

    PyTorch's attention on a CPU gives wrong numbers, without an error, for a float32 mask beside float64 queries.
    """
    if case.dtype == torch.float32:
        return False
    raw, x = {name: value.float() for name, value in case.raw.items()}, x.float()
    try:
        y = case.build().run(raw, x).y
    except LearnerError:
        return False
    expected = case.expected({name: value.double() for name, value in raw.items()}, x.double())
    return agrees(y.double(), expected, x.double(), FLOAT32_TOLERANCE)


def coinciding(case: Case) -> list[tuple[int, int]]:
    """Batches and lengths that equal another size, so that a missing axis is not noticed."""
    heads, head_dim = case.sizes.num_heads, case.sizes.head_dim
    return [(heads, case.tokens), (head_dim, case.tokens), (case.tokens, case.tokens), (heads, heads)]


def what_coincides(case: Case, shapes: list[tuple[int, int]]) -> str:
    """The sizes that are equal in these batches and lengths, as the end of a sentence."""
    sizes = case.sizes
    named = {sizes.num_heads: "num_heads", sizes.head_dim: "head_dim", sizes.d_model: "d_model"}
    both = sorted({size for shape in shapes for size in shape} & named.keys())
    return "".join(f"; {size} is {named[size]}" for size in both)
