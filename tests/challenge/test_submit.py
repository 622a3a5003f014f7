import pytest

from prenorm.challenge import harden
from prenorm.challenge.progress import load
from prenorm.challenge.status import status
from prenorm.challenge.submit import read_answers, submit
from prenorm.errors import ConfigError

from .conftest import SOLUTIONS
from .fake import judge_numbers
from .test_justify import right_answers, wrong_answers

pytestmark = pytest.mark.usefixtures("in_process")


def test_from_a_new_workspace_to_the_end(workspace):
    begun = submit(workspace)
    assert (begun.stage, begun.good) == ("build", False)
    assert status(workspace)["stage"] == "build"

    workspace.layers.write_text((SOLUTIONS / "inplace.py").read_text())
    built = submit(workspace, seed=5)
    assert (built.stage, built.good, len(built.questions)) == ("justify", True, 6)
    assert status(workspace)["justify"] == "6 questions open"

    wrong = submit(workspace, answers=wrong_answers(load(workspace.progress)))
    assert (wrong.stage, wrong.good, len(wrong.questions)) == ("justify", False, 6)
    assert wrong.build is None  # the same file is not judged again

    justified = submit(workspace, answers=right_answers(load(workspace.progress)), seed=5)
    assert (justified.stage, justified.good) == ("harden", True)
    planted = workspace.harden.read_text()
    assert not judge_numbers(f"{workspace.harden}:TransformerBlock").passed

    untouched = submit(workspace)
    assert (untouched.stage, untouched.good) == ("harden", False)
    assert "is as it was planted" in untouched.harden
    workspace.harden.write_text(planted + "# looked at\n")
    for attempt in (1, 2):
        failed = submit(workspace)
        assert not failed.good
        assert status(workspace)["failed_attempts"] == attempt
    assert "That means" in failed.harden

    workspace.harden.write_text(workspace.layers.read_text())
    done = submit(workspace)
    assert (done.stage, done.good) == ("done", True)
    assert done.harden.startswith("Found and mended. It was ")
    assert status(workspace)["stage"] == "done"
    assert submit(workspace).stage == "done"


def test_a_changed_file_is_built_again(solved):
    submit(solved)
    solved.layers.write_text(solved.layers.read_text().replace("x = x + self.attn", "x = self.attn"))
    assert status(solved)["build"] == "open: layers.py has changed since it passed"
    again = submit(solved)
    assert (again.stage, again.good) == ("build", False)
    assert len(load(solved.progress).questions) == 6  # kept


def test_what_was_reached_is_kept_when_something_raises(solved):
    with pytest.raises(ConfigError, match="there is no open question 'x'"):
        submit(solved, answers={"x": 1})
    assert status(solved)["build"] == "passed"
    assert status(solved)["justify"] == "6 questions open"


def test_a_terminal_is_asked_and_may_leave_questions_open(solved):
    submit(solved)
    right = right_answers(load(solved.progress))
    first, *others = right
    some = submit(solved, ask=lambda question: right[question.id] if question.id == first else None)
    assert [one.id for one in some.questions] == others
    assert some.good
    assert submit(solved, ask=lambda question: right[question.id]).stage == "harden"


def test_answers_after_the_questions_are_a_mistake(solved):
    submit(solved)
    submit(solved, answers=right_answers(load(solved.progress)))
    with pytest.raises(ConfigError, match="no question is open: justify is passed"):
        submit(solved, answers={"cost-1": 1})


def test_the_same_seed_draws_the_same(solved):
    first = submit(solved, seed=7).questions
    solved.progress.write_text("{}")
    assert submit(solved, seed=7).questions == first
    solved.progress.write_text("{}")
    assert submit(solved, seed=8).questions != first


def test_a_planted_file_that_is_gone_is_planted_anew(solved):
    submit(solved)
    submit(solved, answers=right_answers(load(solved.progress)))
    solved.harden.unlink()
    again = submit(solved)
    assert again.good
    assert solved.harden.is_file()


def test_the_fault_is_revealed_only_when_it_is_mended(solved):
    submit(solved)
    planted = submit(solved, answers=right_answers(load(solved.progress)))
    fault = harden.revealed(load(solved.progress).planted)
    assert fault not in str(planted.to_json())
    assert fault not in solved.progress.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cost-1": 1,\n}', r"is not JSON \(line 2: .*it should look like"),
        ("[1]", "must hold an object, but it holds a list"),
        ("\xff", "is no UTF-8 text"),
    ],
)
def test_a_broken_answers_file_is_told_with_its_line(text, message, tmp_path):
    (tmp_path / "answers.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        read_answers(tmp_path / "answers.json")
