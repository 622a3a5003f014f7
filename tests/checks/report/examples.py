"""Verdicts, and checks that a process can be handed."""

import os
import time
from pathlib import Path

from prenorm.checks.verdict import FAILED, NOT_APPLICABLE, PASSED, Check, Finding, Place, Verdict
from prenorm.errors import ConfigError

GOOD = Verdict(
    subject="a/layers.py:TransformerBlock",
    conventions={"causal": False},
    checks=(
        Check(name="values", result=PASSED, reason="as they should be"),
        Check(name="mask", result=NOT_APPLICABLE, reason="forward takes none"),
    ),
    seconds=1.5,
)
BAD = Verdict(
    subject="b/layers.py:TransformerBlock",
    findings=(
        Finding(
            id="post_norm",
            message="the norms stand on the <residual> path",
            evidence="y has \x1b[31mrms\x00 1 & more",
            mend="x + f(norm(x))",
            place=Place(file="b/layers.py", line=7, code="x = norm(x + f(x))"),
        ),
        Finding(id="eps_ignored", message="m", evidence="e", mend="w"),
    ),
    checks=(
        Check(name="values", result=FAILED, reason="they differ"),
        Check(name="shapes", result=PASSED, reason="fine"),
        Check(name="dtype", result=PASSED, reason="fine"),
    ),
    seconds=2.0,
)


def check(subject: str, within: Path | None = None) -> Verdict:
    """What the file's text asks for."""
    file, _ = subject.rsplit(":", 1)
    with open(file, encoding="utf-8") as opened:
        wish = opened.read().strip()
    match wish:
        case "good":
            return GOOD
        case "bad":
            return BAD
        case "nothing":
            raise ConfigError("there is nothing to judge.")
        case "raise":
            raise ZeroDivisionError("ours")
        case "die":
            os._exit(9)
        case "die once":
            if not os.path.exists(f"{file}.tried"):
                open(f"{file}.tried", "w").close()
                time.sleep(0.2)
                os._exit(9)
            return GOOD
        case "meet":  # until another one runs at the same time
            open(f"{file}.came", "w").close()
            folder, until = os.path.dirname(file), time.monotonic() + 60
            while sum(one.endswith(".came") for one in os.listdir(folder)) < 2:
                if time.monotonic() > until:
                    return BAD
                time.sleep(0.01)
            return GOOD
    raise AssertionError(wish)
