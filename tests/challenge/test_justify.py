from random import Random

import pytest

from prenorm.challenge import justify
from prenorm.challenge.progress import Progress
from prenorm.challenge.questions import bank
from prenorm.errors import ConfigError


def right_answers(progress):
    """By id, choices by letter."""
    answers = {}
    for one in progress.questions:
        question, put = bank.restored(one.kind, one.numbers).ask(), justify.asked(one)
        answers[one.id] = "abcdef"[put.choices.index(question.answer)] if put.choices else question.answer
    return answers


def wrong_answers(progress):
    answers = {}
    for one in progress.questions:
        question, put = bank.restored(one.kind, one.numbers).ask(), justify.asked(one)
        mistake = question.mistakes[0].value
        answers[one.id] = "abcdef"[put.choices.index(mistake)] if put.choices else mistake
    return answers


@pytest.fixture
def progress():
    drawn = Progress()
    justify.draw(drawn, Random(3))
    return drawn


def test_all_right_is_passed(progress):
    graded = justify.grade(progress, right_answers(progress), Random(0))
    assert len(graded) == 6
    assert all(one.right and not one.explanation for one in graded)
    assert progress.justify_passed
    assert progress.questions == []


def test_a_wrong_answer_is_explained_and_comes_again_with_other_numbers(progress):
    before = list(progress.questions)
    graded = justify.grade(progress, wrong_answers(progress), Random(0))
    assert not any(one.right for one in graded)
    assert not progress.justify_passed
    for old, new, one in zip(before, progress.questions, graded, strict=True):
        mistake = bank.restored(old.kind, old.numbers).ask().mistakes[0]
        assert one.explanation.startswith(mistake.why)
        assert (old.kind, new.id) == (new.kind, old.id.replace("-1", "-2"))
        assert old.numbers != new.numbers
    justify.grade(progress, right_answers(progress), Random(0))
    assert progress.justify_passed


def test_right_answers_count_and_others_stay_open(progress):
    answers = right_answers(progress)
    kept = list(answers)[2:]
    justify.grade(progress, {id: answers[id] for id in list(answers)[:2]}, Random(0))
    assert [one.id for one in progress.questions] == kept
    assert not progress.justify_passed


def test_choices_keep_their_order_and_differ_from_question_to_question():
    orders = set()
    for seed in range(12):
        progress = Progress()
        justify.draw(progress, Random(seed))
        for one in progress.questions:
            put = justify.asked(one)
            assert put == justify.asked(one)
            if put.choices:
                orders.add(put.choices.index(bank.restored(one.kind, one.numbers).ask().answer))
    assert len(orders) > 2


@pytest.mark.parametrize("given", ["0.25", " 0.25 ", 0.25, ".25", "2.5e-1"])
def test_numbers_are_read_as_people_write_them(given):
    put = justify.Asked(id="cost-1", topic="cost", text="?", choices=())
    assert put.read(given) == 0.25
    assert put.read("1,234_567") == 1234567


@pytest.mark.parametrize("given", ["b", "B)", " b ", "two"])
def test_a_choice_is_a_letter_or_its_text(given):
    assert justify.Asked(id="cost-1", topic="cost", text="?", choices=("one", "two")).read(given) == "two"


def test_what_cannot_be_read_or_is_not_open_changes_nothing(progress):
    before = list(progress.questions)
    first = progress.questions[0].id
    for answers, message in (
        ({"cost-9": 1}, "there is no open question 'cost-9'; open are residuals-1, pre-norm-1"),
        ({first: "many"}, f"the answer to {first} must be a number, such as 0.25 or 1e6, not 'many'"),
        ({first: None}, "must be a number"),
        ({first: True}, "must be a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            justify.grade(progress, answers, Random(0))
    assert progress.questions == before
    with pytest.raises(ConfigError, match="must be one of a, b, but it is 'c'"):
        justify.Asked(id="cost-1", topic="cost", text="?", choices=("one", "two")).read("c")
