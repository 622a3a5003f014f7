"""Runs a submission as the challenge would, and says what went wrong: nothing ever should."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import prenorm
from prenorm.checks.sandbox import Limits, Sandbox
from prenorm.checks.subject import EndedError

from .canaries import Canaries
from .submission import Submission

SECONDS = 3.0
LATE = 2.0  # the verdict comes within limit + 2 s
LIMITS = Limits(memory=1 << 30, reply=32 << 20)
# An attempt that ends so was written wrongly, and attempted nothing.
MISTAKES = re.compile(
    r"^refused: (NameError|UnboundLocalError|AttributeError|SyntaxError|IndentationError|TypeError).*", re.MULTILINE
)
SIZES = (16, 2, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """wrong: what should not have happened. said: everything that came out of the sandbox, as text."""

    wrong: list[str]
    said: str
    seconds: float


def run(
    submission: Submission, canaries: Canaries, *, limit: float = SECONDS, without: tuple[str, ...] = ()
) -> Outcome:
    """Judge submission beside the canaries, within limit seconds."""
    file = canaries.submissions / "submission.py"
    file.write_text(submission.source(canaries.places))
    before = canaries.snapshot()
    start = time.monotonic()
    passed, said = passes(file, limit, without)
    seconds = time.monotonic() - start
    wrong = canaries.touched(before, said)
    if passed:
        wrong.append("it passed")
    if seconds > limit + LATE:
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
    with Sandbox(file.parent, seconds=seconds, prenorm_importable=False, limits=LIMITS, without=without) as sandbox:
        try:
            passed = _agrees(sandbox, file, said)
        except EndedError as error:
            passed = False
            said.append(str(error))
        said.append(sandbox.printed)
    return passed, "\n".join(said)


def _agrees(sandbox: Sandbox, file: Path, said: list[str]) -> bool:
    load = {"op": "load", "root": str(file.parent), "module": file.stem, "file": str(file), "name": "TransformerBlock"}
    build = {"op": "build", "positional": list(SIZES), "double": True}
    built = None
    for request in (load, build):
        built = sandbox.ask(request)
        said.append(str(built))
        if "error" in built or "missing" in built:
            return False
    assert built is not None
    right = prenorm.TransformerBlock(*SIZES, rope_interleaved=True, causal=False).double()
    for cotangent in (None, torch.randn(2, 3, SIZES[0], dtype=torch.float64), None):
        for parameter in right.parameters():
            torch.nn.init.normal_(parameter)
        values = {name: parameter.detach() for name, parameter in right.named_parameters()}
        x = torch.randn(2, 3, SIZES[0], dtype=torch.float64)
        request = {"op": "run", "block": built["block"], "inputs": [x], "parameters": values, "cotangent": cotangent}
        reply = sandbox.ask(request)
        said.append(str(reply))
        y = reply.get("y")
        if y is None or y.shape != x.shape or y.dtype != x.dtype or not torch.allclose(y, right(x)):
            return False
    return True
