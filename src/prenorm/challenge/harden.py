"""Stage 3: one fault is planted into the learner's own code; the checker decides whether it is found and mended."""

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

CANDIDATES = 6  # of one fault; each costs a run of the checker


def plant(text: str, rng: Random, judge: Judge) -> tuple[str, str]:
    """(fault, text): a learner's file with one fault in it, that runs and that the checker finds.

    The text must pass the checker as it is. A fault that the checker calls by its own name is taken at once; one that
    it sees under another name, when no other place gives the name. Raises ConfigError where nothing can be planted.
    """
    try:
        code = Code(text, BLOCK)
    except SyntaxError as error:
        raise ConfigError(f"layers.py cannot be parsed (line {error.lineno}: {error.msg}); submit it again.") from error
    for fault in rng.sample(sorted(PLANTERS), len(PLANTERS)):
        if (planted := plant_one(code, fault, judge)) is not None:
            return fault, planted
    raise ConfigError(
        f"no fault of the list could be planted: layers.py must define {BLOCK} itself; "
        "bring the code into that file, and submit again."
    )


def plant_one(code: Code, fault: str, judge: Judge) -> str | None:
    """The file with this fault planted, or None where no place for it is found."""
    second_best = None
    for text, verdict in _judged(code, fault, judge):
        if fault in verdict.ids:
            return text
        if verdict.findings and not CRASHES.intersection(verdict.ids):
            second_best = second_best or text
    return second_best


def seal(path: Path, fault: str) -> Planted:
    """What progress keeps of a planted file: nothing that gives the fault away."""
    salt = secrets.token_hex(16)
    return Planted(sha256=file_hash(path), salt=salt, fault=_salted(fault, salt))


def revealed(planted: Planted) -> str:
    """Which fault it was."""
    return next(
        (fault for fault in FAULTS if _salted(fault, planted.salt) == planted.fault), "a fault of another version"
    )


def hint(verdict: Verdict, failed_attempts: int) -> str:
    """More of the checker's first finding after every failed attempt: what it saw, what that means, how to mend it."""
    finding = verdict.findings[0]
    lines = [f"The checker saw: {finding.evidence}", f"That means: {finding.message}", f"Mend it: {finding.mend}"]
    if finding.place is not None:
        lines.append(f"Look at line {finding.place.line}: {finding.place.code}")
    shown = lines[:failed_attempts]
    more = "" if len(shown) == len(lines) else "\n(The next failed attempt tells more.)"
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
