"""Stage 3: one fault is planted into the learner's own code; the checker decides whether it was fixed."""

import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from ..checks.faults import CRASHES, FAULTS
from ..checks.verdict import Verdict
from ..errors import ConfigError
from .build import BLOCK
from .judge import Judge
from .planters.code import Code
from .planters.table import PLANTERS, candidates
from .progress import Planted, file_hash

CANDIDATES = 6  # places tried for one fault; each costs a run of the checker


def plant(text: str, rng: Random, judge: Judge) -> tuple[str, str]:
    """(fault, text): the learner's file with one fault, which runs, and which the checker detects.

    The text must pass the checker. A place where the checker gives the fault its own name is preferred to one where it
    gives another name. Raises ConfigError if nothing can be planted.
    """
    try:
        code = Code(text, BLOCK)
    except SyntaxError as error:
        raise ConfigError(f"layers.py cannot be parsed (line {error.lineno}: {error.msg}); submit it again.") from error
    for fault in rng.sample(sorted(PLANTERS), len(PLANTERS)):
        if (planted := plant_one(code, fault, judge)) is not None:
            return fault, planted
    raise ConfigError(
        f"no fault could be planted: layers.py must define {BLOCK} itself; "
        "move the code into that file, and submit again."
    )


def plant_one(code: Code, fault: str, judge: Judge) -> str | None:
    """The file with this fault planted, or None if there is no place for it."""
    second_best = None
    for text, verdict in _judged(code, fault, judge):
        if fault in verdict.ids:
            return text
        if verdict.findings and not CRASHES.intersection(verdict.ids):
            second_best = second_best or text
    return second_best


def seal(path: Path, fault: str) -> Planted:
    """The record of a planted file, which does not reveal the fault."""
    salt = secrets.token_hex(16)
    return Planted(sha256=file_hash(path), salt=salt, fault=_salted(fault, salt))


def revealed(planted: Planted) -> str:
    """The name of the planted fault."""
    return next(
        (fault for fault in FAULTS if _salted(fault, planted.salt) == planted.fault), "a fault of another version"
    )


def hint(verdict: Verdict, failed_attempts: int) -> str:
    """A part of the checker's first finding, more after every failed attempt: evidence, meaning, fix, line."""
    finding = verdict.findings[0]
    lines = [f"The checker saw: {finding.evidence}", f"That means: {finding.message}", f"Fix: {finding.mend}"]
    if finding.place is not None:
        lines.append(f"Look at line {finding.place.line}: {finding.place.code}")
    shown = lines[:failed_attempts]
    more = "" if len(shown) == len(lines) else "\n(The next failed attempt shows more.)"
    return "\n".join(shown) + more


def _judged(code: Code, fault: str, judge: Judge) -> Iterator[tuple[str, Verdict]]:
    for number, text in enumerate(candidates(code, fault)):
        if number == CANDIDATES:
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "layers.py"
            file.write_text(text, encoding="utf-8")
            yield text, judge(f"{file}:{BLOCK}")


def _salted(fault: str, salt: str) -> str:
    return hashlib.sha256(f"{salt} {fault}".encode()).hexdigest()
