"""What the challenge uses of checks/: the judge of whole blocks, and a sandbox for their parts.

In the challenge the target is the paper: pairs (2i, 2i+1), not causal, no biases. The judged code cannot import
prenorm.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..checks.check import check
from ..checks.subject.protocol import Subject
from ..checks.subject.sandbox import Sandbox
from ..checks.verdict import Verdict

Judge = Callable[[str], Verdict]
OpenSubject = Callable[[Path], AbstractContextManager[Subject]]

SECONDS = 60.0


def paper_judge(subject: str) -> Verdict:
    """The verdict on FILE.py:CLASS."""
    return check(subject, target="paper", seconds=SECONDS, prenorm_importable=False)


def sandboxed(folder: Path) -> AbstractContextManager[Subject]:
    """A subject that runs the code of a folder in a sandbox."""
    return Sandbox(folder, seconds=SECONDS, prenorm_importable=False)
