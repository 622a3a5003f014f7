"""What is said of an error that a learner's code raises."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from prenorm.checks.subject.child.errors import LEFT_OUT, described

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


OFFLINE = """
class ConnectionError(OSError): "As that of requests."

class OfflineError(ConnectionError): "As that of a hub."

def down():
    raise OfflineError("the hub is out of reach")

def late():
    try:
        down()
    except OSError:
        raise ValueError("no vocabulary") from KeyError("vocab.json")
"""


@pytest.mark.parametrize("called", ["down", "late"])
def test_what_fails_because_there_is_no_network_is_no_fault(called: str) -> None:
    names: dict[str, Any] = {}
    exec(OFFLINE, names)
    with pytest.raises((OSError, ValueError)) as raised:
        names[called]()
    told = described(raised.value)
    assert told["type"] == "NotInstalledError"
    assert told["message"].startswith("the sandbox refuses the network (OfflineError: the hub is out of reach)")


@pytest.mark.parametrize(("name", "type"), [("rate", "NotInstalledError"), ("rates", "NameError")])
def test_a_name_that_left_out_lines_make_is_not_the_blocks_fault(name: str, type: str) -> None:
    with pytest.raises(NameError) as raised:
        exec(f"def run():\n    return {name}\nrun()", {LEFT_OUT: {"rate": "cell 3"}})
    told = described(raised.value)
    assert told["type"] == type
    assert ("what makes it, in cell 3, is not run" in told["message"]) == (name == "rate")


@pytest.mark.parametrize(
    ("file", "message"), [("a.ipynb", "invalid syntax"), ("a.py", "invalid syntax (a.py, line 2)")]
)
def test_a_syntax_error_in_a_notebook_says_no_line_of_the_joined_cells(file: str, message: str) -> None:
    with pytest.raises(SyntaxError) as raised:
        compile("x = 1\ndef f(:\n", file, "exec")
    told = described(raised.value)
    assert (told["message"], told["frames"][-1]["line"]) == (message, 2)


def test_a_file_that_waits_for_somebody_to_type_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(EOFError) as raised:
        input("name? ")
    assert described(raised.value)["message"] == "input() waits for somebody to type, and nobody does here"


SIZES = "The size of tensor a (32) must match the size of tensor b (3)"


def scripted() -> None:
    torch.jit.script(added)(torch.ones(32), torch.ones(3))


def added(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def in_dynamo() -> None:
    explained = f"Dynamo failed to run FX node with fake tensors: call_function add: got RuntimeError('{SIZES}')\n"
    raise RuntimeError(f"RuntimeError when making fake tensor call\n  Explanation: {explained}  Hint: run it eagerly.")


def in_a_replica() -> None:
    raise RuntimeError(
        f'Caught RuntimeError in replica 0 on device 0.\nOriginal Traceback:\n  File "a.py"\nRuntimeError: {SIZES}'
    )


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("run", [scripted, in_dynamo, in_a_replica])
def test_an_error_inside_the_text_of_another_is_what_is_told(run: Callable[[], None]) -> None:
    with pytest.raises(RuntimeError) as raised:
        run()
    told = described(raised.value)
    assert told["type"] == "RuntimeError"
    assert told["message"].startswith(SIZES)


def test_a_tensor_is_not_shown_with_its_numbers() -> None:
    numbers = "tensor([[ 0.8, -0.4],\n        [0.1, 0.2]])"
    told = described(
        TypeError(f'f() parameter x="{numbers}" violates type hint int, as "{numbers}" not instance of int.')
    )
    assert told["message"] == "f() parameter x=a tensor violates type hint int, as a tensor not instance of int."
