"""One submission: the next stage of a workspace, and those after it that need nothing from the learner."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ..checks.faults import FAULTS
from ..errors import ConfigError
from . import harden, justify, progress
from .build import BLOCK, Build, build
from .judge import Judge, OpenSubject, paper_judge
from .progress import Progress
from .workspace import Workspace

Ask = Callable[[justify.Asked], Any]


@dataclass(kw_only=True, slots=True)
class Outcome:
    """The result of a submission. stage: the learner's stage now, "done" at the end."""

    stage: str
    good: bool = True  # False: faults, or wrong answers
    build: Build | None = None  # where it was run
    graded: list[justify.Graded] = field(default_factory=list)
    questions: list[justify.Asked] = field(default_factory=list)  # that are open
    harden: str | None = None  # what is to be said about it

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "stage": self.stage,
            "good": self.good,
            "build": None if self.build is None else self.build.to_json(),
            "answers": [
                {name: getattr(one, name) for name in ("id", "text", "given", "right", "answer", "explanation")}
                for one in self.graded
            ],
            "questions": [one.to_json() for one in self.questions],
            "harden": self.harden,
        }


def submit(
    workspace: Workspace,
    *,
    answers: Mapping[str, Any] | None = None,
    ask: Ask | None = None,
    seed: int | None = None,
    judge: Judge | None = None,
    open_subject: OpenSubject | None = None,
) -> Outcome:
    """Continue from the stage of the workspace, and save the progress.

    answers: by question id. ask: gives an answer to a question, None to leave it open. With neither, questions are
    drawn and left open. Raises ConfigError for what makes no sense.
    """
    state = progress.load(workspace.progress)
    try:
        return _Submission(workspace, state, judge or paper_judge, open_subject, seed).run(answers, ask)
    finally:
        progress.save(state, workspace.progress)


@dataclass(slots=True)
class _Submission:
    workspace: Workspace
    state: Progress
    judge: Judge
    open_subject: OpenSubject | None
    seed: int | None

    def run(self, answers: Mapping[str, Any] | None, ask: Ask | None) -> Outcome:
        outcome = Outcome(stage="build")
        if not self.state.build_passed(self.workspace.layers) and not self._build(outcome):
            return outcome
        outcome.stage = "justify"
        if self.state.justify_passed and answers:
            raise ConfigError("no question is open: justify is passed; leave --answers out.")
        if not self.state.justify_passed and not self._justify(outcome, answers, ask):
            return outcome
        outcome.stage = "harden"
        if not self.state.harden_passed and not self._harden(outcome):
            return outcome
        outcome.stage = "done"
        return outcome

    def _build(self, outcome: Outcome) -> bool:
        before = progress.file_hash(self.workspace.layers)
        outcome.build = build(self.workspace.layers, judge_whole=self.judge, open_subject=self.open_subject)
        outcome.good = outcome.build.passed
        if outcome.good:
            self.state.build_sha256 = before
        return outcome.good

    def _justify(self, outcome: Outcome, answers: Mapping[str, Any] | None, ask: Ask | None) -> bool:
        if not self.state.questions:
            justify.draw(self.state, self._rng("draw"))
        if answers is None and ask is not None:
            replies = {one.id: ask(justify.asked(one)) for one in self.state.questions}
            answers = {id: reply for id, reply in replies.items() if reply is not None}
        if answers:
            outcome.graded = justify.grade(self.state, answers, self._rng("redraw"))
            outcome.good = all(one.right for one in outcome.graded)
        outcome.questions = [justify.asked(one) for one in self.state.questions]
        return self.state.justify_passed

    def _harden(self, outcome: Outcome) -> bool:
        path = self.workspace.harden
        if self.state.planted is None or not path.is_file():
            text = self.workspace.layers.read_text(encoding="utf-8")
            fault, planted = harden.plant(text, self._rng("plant"), self.judge)
            path.parent.mkdir(exist_ok=True)
            path.write_text(planted, encoding="utf-8")
            self.state.planted = harden.seal(path, fault)
            outcome.harden = f"One fault is in a copy of your code, {path}. Find it, fix it there, and submit."
            return False
        if progress.file_hash(path) == self.state.planted.sha256:
            outcome.good = False
            outcome.harden = f"{path} is as it was planted: find the fault in it, fix it there, and submit."
            return False
        verdict = self.judge(f"{path}:{BLOCK}")
        outcome.good = self.state.harden_passed = verdict.passed
        if verdict.passed:
            outcome.harden = _found(harden.revealed(self.state.planted))
        else:
            self.state.planted.failed_attempts += 1
            outcome.harden = harden.hint(verdict, self.state.planted.failed_attempts)
        return outcome.good

    def _rng(self, purpose: str) -> Random:
        """A random generator; with a seed, always the same one at the same point."""
        return Random() if self.seed is None else Random(f"{self.seed} {purpose} {self.state.attempts}")


def _found(fault: str) -> str:
    known = FAULTS.get(fault)
    return f"Found and mended. It was {fault}" + (f": {known.meaning}." if known else ".")


def read_answers(path: Path) -> dict[str, Any]:
    """The answers in a JSON file, by id. Raises ConfigError with the damaged line."""
    example = '{"residuals-1": 3.39, "width-1": "b"}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}); it should look like {example}."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text; it should look like {example}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold an object, but it holds a {type(content).__name__}: {example}.")
    return content
