"""What went wrong in a learner's code, as a reply says it."""

import contextlib
import importlib.util
import os
import re
import traceback
from collections.abc import Mapping
from typing import Any

from torch import nn

from .missing_packages import KNOWN, NotInstalledError, not_installed
from .newer_python import needed
from .refused import refused, wants_gpu

FRAMES = 12  # of a traceback, the innermost
TEXT = 2000  # characters of an error's message
FOLDER = os.path.dirname(__file__)  # whose frames are of no use to a learner


def described(error: BaseException) -> dict[str, Any]:
    """An exception as {"type", "message", "frames"}, frames from the outermost to the innermost.

    A known package that is not installed is a NotInstalledError, wherever it is imported; so are a newer Python, a
    file that is read, such as a vocabulary, other processes, what the sandbox refuses, and a name that a notebook makes
    where it is not run.
    """
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, NotInstalledError) and error.name:
        top = error.name.partition(".")[0]
        if top in KNOWN and not _is_there(top):
            error = not_installed(error.name).with_traceback(error.__traceback__)
    frames = [
        {"file": frame.filename, "line": frame.lineno, "function": frame.name, "code": frame.line or ""}
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(FOLDER)
    ]
    if isinstance(error, SyntaxError):
        frames.append(
            {"file": error.filename, "line": error.lineno, "function": "", "code": (error.text or "").strip()}
        )
    try:
        message = str(error)
        if isinstance(error, SyntaxError) and str(error.filename).endswith(".ipynb"):
            message = error.msg  # without a line that no cell has: its place is told beside
    except BaseException:  # __str__ is the learner's too
        message = "(its message cannot be shown)"
    if isinstance(error, EOFError) and message == "EOF when reading a line":
        message = "input() waits for somebody to type, and nobody does here"
    lacking = needed(error) or refused(error) or wants_gpu(error) or _left_out(error)
    if isinstance(error, FileNotFoundError) and error.filename:
        lacking = f"{error.filename} is read, and is not there: put it beside the file that reads it"
    if isinstance(error, RuntimeError | ValueError) and "process group has not been initialized" in message:
        lacking = "torch.distributed is used, and there is no process group: only a block that runs alone can be judged"
    if lacking:
        return {"type": NotInstalledError.__name__, "message": lacking, "frames": frames[-FRAMES:]}
    if isinstance(error, UnfinishedError):
        return {"type": "TypeError", "message": message, "frames": [error.frame]}
    if (inner := _inner(message)) is not None:
        return {"type": inner[0], "message": inner[1][:TEXT], "frames": frames[-FRAMES:]}
    message = REPR.sub(r"a \1", message)
    if error.__cause__ is not None and frames and _only_leads(message, str(frames[-1]["file"])):
        return {
            "type": type(error.__cause__).__name__,
            "message": str(error.__cause__)[:TEXT],
            "frames": frames[-FRAMES:],
        }
    cause = "" if error.__cause__ is None else "\n" + "".join(traceback.format_exception_only(error.__cause__)).strip()
    return {"type": type(error).__name__, "message": message[: TEXT - 400] + cause[:400], "frames": frames[-FRAMES:]}


LEFT_OUT = "__left_out__"
"""In a module that is run without some of its lines: the names that these make, with their places."""


def _left_out(error: BaseException) -> str:
    """Where the name that is not defined is made, if it is made in lines that did not run; empty if it is not."""
    steps = [*traceback.walk_tb(error.__traceback__)]
    if type(error) is not NameError or not steps:
        return ""
    left_out = steps[-1][0].f_globals.get(LEFT_OUT, {})
    place = left_out.get(error.name) if isinstance(left_out, Mapping) else None
    if place is None:
        return ""
    return (
        f"{error.name} is not defined, because what makes it, in {place}, is not run (of a notebook, only definitions "
        f"and what the block needs are), or raises: give {error.name} its value in a plain assignment"
    )


def entered(error: BaseException, module: nn.Module) -> bool:
    """Whether an error came out of a call of this module, or of its methods."""
    return any(frame.f_locals.get("self") is module for frame, _ in traceback.walk_tb(error.__traceback__))


WRAPPED = (
    re.compile(r"^The following operation failed in the TorchScript interpreter\..*\n(\w+): (.+)", re.DOTALL),
    re.compile(r"^\w+ when making fake tensor call\n.*?: got (\w+)\((?:'(.*?)'|\"(.*?)\")\)\n", re.DOTALL),
    re.compile(r"^Caught (\w+) in (?:replica|DataLoader).*\n\1: (.+)", re.DOTALL),
)
"""Messages of TorchScript, torch.compile and DataParallel, which hold the type and the message of another error."""

REPR = re.compile(r"\"(?:Parameter containing:\s*)?(tensor)\([^\"]*\)\"")
"""All the numbers of a tensor, as beartype shows them."""


def _inner(message: str) -> tuple[str, str] | None:
    """The type and message of the error that a message wraps; None if it is one of its own."""
    found = next((match for one in WRAPPED if (match := one.search(message)) is not None), None)
    if found is None:
        return None
    kind, *texts = found.groups()
    return kind, next(one for one in texts if one).strip()


def _only_leads(message: str, file: str) -> bool:
    """Whether a package says only that its own code failed, such as code that it generated, and shows that code."""
    return "site-packages" in file and message.partition("\n")[0].rstrip().endswith(":")


def _is_there(package: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(package) is not None
    return False


class UnfinishedError(TypeError):
    """A module whose constructor never calls super().__init__()."""

    def __init__(self, owner: type) -> None:
        super().__init__(f"{owner.__name__}.__init__ never calls super().__init__(), which every nn.Module must")
        code = owner.__init__.__code__  # type: ignore[misc]
        name = f"def __init__ of {owner.__name__}"
        self.frame = {"file": code.co_filename, "line": code.co_firstlineno, "function": "__init__", "code": name}


class NoShapesError(RuntimeError):
    """A block with lazy modules, such as nn.LazyLinear, gets its shapes in a first call, and block(x) raises."""


def unfinished(module: nn.Module) -> type | None:
    """The class of a module in it, or its own, that is no finished nn.Module."""
    if "_parameters" not in vars(module):
        return type(module)
    inner = (unfinished(one) for one in module._modules.values() if isinstance(one, nn.Module))
    return next((one for one in inner if one is not None), None)
