"""The parts of a question: random numbers, the answer, common mistakes, and a run that gives the answer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random
from typing import ClassVar

Answer = float | int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A common wrong answer, and the reason why it is wrong, with the question's numbers."""

    value: Answer
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question as it is asked. With text as the answer it is a choice between that and the mistakes.

    experiment: what `Problem.demonstrate` runs, as a clause. tolerance: relative; 0 for whole numbers.
    """

    text: str
    answer: Answer
    reason: str
    experiment: str
    mistakes: tuple[Mistake, ...]
    tolerance: float = 0.01

    @property
    def is_choice(self) -> bool:
        """Whether it is a multiple-choice question."""
        return isinstance(self.answer, str)

    def choices(self, rng: Random) -> list[str]:
        """The answer and the mistakes in some order; empty if the answer is a number."""
        shuffled = [str(self.answer), *(str(one.value) for one in self.mistakes)] if self.is_choice else []
        rng.shuffle(shuffled)
        return shuffled

    def agrees(self, value: Answer, given: Answer) -> bool:
        """Whether a given answer is this value."""
        if isinstance(value, str) or isinstance(given, str):
            return value == given
        return abs(given - value) <= self.tolerance * abs(value) + 1e-9

    def is_right(self, given: Answer) -> bool:
        """Whether a given answer is the right one."""
        return self.agrees(self.answer, given)

    def explanation(self, given: Answer, measured: Answer) -> str:
        """Why a wrong answer is wrong: the mistake if it is known, the reason, and the measured value."""
        slip = next((one.why for one in self.mistakes if self.agrees(one.value, given)), None)
        begins = f"{slip} " if slip else ""
        return f"{begins}{self.reason} Measured: {shown(measured)} ({self.experiment})."


@dataclass(frozen=True)
class Problem(ABC):
    """A kind of question. Its fields are the numbers that are drawn, plain values that JSON can hold."""

    topic: ClassVar[str]

    @classmethod
    @abstractmethod
    def draw(cls, rng: Random) -> "Problem":
        """A problem with random numbers."""

    @abstractmethod
    def ask(self) -> Question:
        """The question with these numbers."""

    @abstractmethod
    def demonstrate(self) -> Answer:
        """The answer, from running prenorm."""


def shown(value: Answer) -> str:
    """A number or text for display."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:.4g}"
