import json
import os
from dataclasses import asdict
from random import Random

import pytest

from prenorm.challenge.questions import bank
from prenorm.challenge.questions.problem import shown
from prenorm.errors import ConfigError

SEEDS = range(100 if os.environ.get("PRENORM_ALL_CHECKS") else 6)


@pytest.mark.parametrize("kind", bank.PROBLEMS, ids=lambda kind: kind.__name__)
def test_the_right_answer_is_what_the_library_gives(kind):
    for seed in SEEDS:
        problem = kind.draw(Random(seed))
        assert problem.ask().is_right(problem.demonstrate()), problem


@pytest.mark.parametrize("kind", bank.PROBLEMS, ids=lambda kind: kind.__name__)
def test_no_mistake_is_right_and_each_is_its_own(kind):
    for seed in range(60):
        question = kind.draw(Random(seed)).ask()
        for number, mistake in enumerate(question.mistakes):
            assert not question.is_right(mistake.value), (question, mistake)
            assert not any(question.agrees(mistake.value, other.value) for other in question.mistakes[:number])
        assert len(question.mistakes) >= 3


@pytest.mark.parametrize("kind", bank.PROBLEMS, ids=lambda kind: kind.__name__)
def test_an_explanation_has_the_slip_the_reason_and_what_the_library_gave(kind):
    problem = kind.draw(Random(1))
    question, measured = problem.ask(), problem.demonstrate()
    for mistake in question.mistakes:
        explanation = question.explanation(mistake.value, measured)
        assert explanation == f"{mistake.why} {question.reason} Measured: {shown(measured)} ({question.experiment})."
    if not question.is_choice:
        assert question.explanation(-12345.678, measured).startswith(question.reason)


def test_every_attempt_has_fresh_numbers_and_one_question_of_each_topic():
    problems = bank.draw_all(Random(0))
    assert [problem.topic for problem in problems] == list(bank.TOPICS)
    assert len(bank.TOPICS) == 6
    assert bank.draw_all(Random(1)) != problems
    assert len(bank.PROBLEMS) >= 12


def test_numbers_survive_json():
    for kind in bank.PROBLEMS:
        problem = kind.draw(Random(3))
        assert bank.restored(kind.__name__, json.loads(json.dumps(asdict(problem)))) == problem


def test_unknown_questions_are_refused():
    with pytest.raises(ConfigError, match="there is no question 'Nothing'"):
        bank.restored("Nothing", {})
    with pytest.raises(ConfigError, match="NumbersOut cannot have the numbers"):
        bank.restored("NumbersOut", {"batch": 1, "nothing": 2})


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (1234567, "1,234,567"), (2.0, "2"), (0.123456, "0.1235"), ("a", "a")]
)
def test_numbers_are_shown_as_people_read_them(value, text):
    assert shown(value) == text
