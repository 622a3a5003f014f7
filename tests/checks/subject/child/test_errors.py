"""What is said of an error that a learner's code raises."""

from typing import Any

import pytest

from prenorm.checks.subject.child.errors import described

SAID = "the code that was generated failed:\ndef op(x): ..."
TEXT = """
def run():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise ValueError("the code that was generated failed:\\ndef op(x): ...") from error
"""


@pytest.mark.parametrize(
    ("file", "type", "message"),
    [
        ("/lib/site-packages/einy/run.py", "ZeroDivisionError", "division by zero"),
        ("/home/me/run.py", "ValueError", f"{SAID}\nZeroDivisionError: division by zero"),
    ],
)
def test_a_packages_error_that_only_leads_to_another_is_left_out(file: str, type: str, message: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(TEXT, file, "exec"), names)
    with pytest.raises(ValueError, match="generated") as raised:
        names["run"]()
    told = described(raised.value)
    assert (told["type"], told["message"]) == (type, message)
    assert told["frames"][-1]["file"] == file
