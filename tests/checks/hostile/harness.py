"""Runs a submission as the challenge would, and says what went wrong: nothing ever should."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.raised import MissingError
from prenorm.checks.subject.sandbox import Limits, Sandbox

from .canaries import Canaries
from .submission import Submission

SECONDS = 3.0
LATE = 2.0  # the verdict comes within limit + 2 s, on a machine that has nothing else to do
LIMITS = Limits(memory=1 << 30, reply=32 << 20)
# An attempt that ends so was written wrongly, and attempted nothing.
MISTAKES = re.compile(
    r"^refused: (NameError|UnboundLocalError|AttributeError|SyntaxError|IndentationError|TypeError).*", re.MULTILINE
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """wrong: what should not have happened. said: everything that came out of the sandbox, as text."""

    wrong: list[str]
    said: str
    seconds: float


def run(
    submission: Submission,
    canaries: Canaries,
    *,
    limit: float = SECONDS,
    late: float = LATE,
    without: tuple[str, ...] = (),
) -> Outcome:
    """Judge submission beside the canaries, within limit seconds; the verdict may come late by as many."""
    file = canaries.submissions / "submission.py"
    file.write_text(submission.source(canaries.places))
    before = canaries.snapshot()
    start = time.monotonic()
    passed, said = passes(file, limit, without)
    seconds = time.monotonic() - start
    wrong = canaries.touched(before, said)
    if passed:
        wrong.append("it passed")
    if seconds > limit + late:
        wrong.append(f"it took {seconds:.1f} s")
    if mistake := MISTAKES.search(said):
        wrong.append(f"it attempted nothing: {mistake[0]}")
    file.unlink(missing_ok=True)
    if wrong:
        canaries.reset()
    return Outcome(wrong=wrong, said=said, seconds=seconds)


def passes(file: Path, seconds: float, without: tuple[str, ...] = ()) -> tuple[bool, str]:
    """Whether the TransformerBlock of file passes, and all that its process said on the way."""
    said: list[str] = []
    code = Code(root=str(file.parent), module=file.stem, file=str(file), name="TransformerBlock")
    with Sandbox(file.parent, seconds=seconds, prenorm_importable=False, limits=LIMITS, without=without) as sandbox:
        try:
            verdict = judge(_Overheard(sandbox, said), code, deadline=sandbox.deadline)
            passed = verdict.passed
            said.append(str(verdict))
        except MissingError:
            passed = False
        said.append(sandbox.printed)
    return passed, "\n".join(said)


class _Overheard:
    """A sandbox whose replies are written down."""

    def __init__(self, sandbox: Sandbox, said: list[str]) -> None:
        self.sandbox = sandbox
        self.said = said

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The sandbox's reply."""
        reply = self.sandbox.ask(request)
        self.said.append(str(reply))
        return reply
