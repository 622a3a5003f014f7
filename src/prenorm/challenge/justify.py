"""Stage 2: questions with random numbers. A wrong answer is explained, and asked again with other numbers."""

import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from ..errors import ConfigError
from .progress import OpenQuestion, Progress
from .questions import bank
from .questions.problem import Answer, Problem, Question, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """An open question as the learner sees it."""

    id: str
    topic: str
    text: str
    choices: tuple[str, ...]  # empty if the answer is a number

    def to_json(self) -> dict[str, Any]:
        """For --json: choices by letter."""
        letters = dict(zip(string.ascii_lowercase, self.choices, strict=False))
        return {"id": self.id, "topic": self.topic, "text": self.text, "choices": letters or None}

    def read(self, given: Any) -> Answer:
        """An answer as a number, or as the text of a choice. Raises ConfigError for what is neither."""
        if self.choices:
            letters = dict(zip(string.ascii_lowercase, self.choices, strict=False))
            text = str(given).strip()
            if text in self.choices:
                return text
            if text.lower().rstrip(".)") in letters:
                return letters[text.lower().rstrip(".)")]
            raise ConfigError(f"the answer to {self.id} must be one of {', '.join(letters)}, but it is {given!r}.")
        if isinstance(given, int | float) and not isinstance(given, bool):
            return given
        try:
            return float(str(given).replace(",", "").replace("_", "").replace(" ", ""))
        except ValueError:
            raise ConfigError(
                f"the answer to {self.id} must be a number, such as 0.25 or 1e6, not {given!r}."
            ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """An answer, whether it is right, and why not."""

    id: str
    text: str
    given: str
    right: bool
    answer: str
    explanation: str = ""


def draw(progress: Progress, rng: Random) -> None:
    """Open one question of each topic."""
    progress.attempts += 1
    progress.questions = [_opened(problem, progress.attempts) for problem in bank.draw_all(rng)]


def asked(question: OpenQuestion) -> Asked:
    """The text of an open question. The order of its choices is always the same."""
    problem = bank.restored(question.kind, question.numbers)
    as_it_is = problem.ask()
    order = Random(f"{question.id} {question.numbers}")
    return Asked(id=question.id, topic=problem.topic, text=as_it_is.text, choices=tuple(as_it_is.choices(order)))


def grade(progress: Progress, answers: Mapping[str, Any], rng: Random) -> list[Graded]:
    """Grade answers by id. A right one closes its question, a wrong one replaces it by one with other numbers.

    Raises ConfigError, and changes nothing, for ids that are not open and answers that cannot be read.
    """
    open_ids = [one.id for one in progress.questions]
    if unknown := [id for id in answers if id not in open_ids]:
        raise ConfigError(
            f"there is no open question {', '.join(map(repr, unknown))}; open are {', '.join(open_ids) or 'none'}."
        )
    given = {one.id: asked(one).read(answers[one.id]) for one in progress.questions if one.id in answers}
    graded, still_open = [], []
    if any(not _question(one).is_right(given[one.id]) for one in progress.questions if one.id in given):
        progress.attempts += 1
    for one in progress.questions:
        if one.id not in given:
            still_open.append(one)
            continue
        result = _graded(one, given[one.id])
        graded.append(result)
        if not result.right:
            still_open.append(_opened(_another(one, rng), progress.attempts))
    progress.questions = still_open
    progress.justify_passed = not still_open
    return graded


def _graded(question: OpenQuestion, given: Answer) -> Graded:
    problem, text = bank.restored(question.kind, question.numbers), _question(question)
    right = text.is_right(given)
    return Graded(
        id=question.id,
        text=text.text,
        given=shown(given),
        right=right,
        answer=shown(text.answer),
        explanation="" if right else text.explanation(given, problem.demonstrate()),
    )


def _question(question: OpenQuestion) -> Question:
    return bank.restored(question.kind, question.numbers).ask()


def _opened(problem: Problem, attempt: int) -> OpenQuestion:
    return OpenQuestion(id=f"{problem.topic}-{attempt}", kind=type(problem).__name__, numbers=asdict(problem))


def _another(question: OpenQuestion, rng: Random) -> Problem:
    """A problem of the same kind with other numbers."""
    before = bank.restored(question.kind, question.numbers)
    while (problem := type(before).draw(rng)) == before:
        pass
    return problem
