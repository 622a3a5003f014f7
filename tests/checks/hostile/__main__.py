"""Runs every hostile submission: `python -m tests.checks.hostile [-v] [--without=layers] [kinds or names]`.

--without=namespaces,mounts leaves these layers out, as on a system that has them not.
--unconfined leaves out every layer, for submissions that harm the canaries only: those must then notice.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import control, files, forging, network, processes, resources
from .canaries import Canaries, adopting_orphans
from .harness import run
from .submission import Submission

ALL: list[Submission] = [
    one for module in (processes, files, network, resources, control, forging) for one in module.ALL
]
LAYERS = ("namespaces", "mounts", "landlock", "seccomp")


def main(arguments: list[str]) -> int:
    """Run them, and print what went wrong and how many there were."""
    unconfined = "--unconfined" in arguments
    without: tuple[str, ...] = LAYERS if unconfined else ()
    for argument in arguments:
        if argument.startswith("--without="):
            without = tuple(argument.partition("=")[2].split(","))
    wanted = tuple(argument for argument in arguments if not argument.startswith("-")) or ("",)
    chosen = [one for one in ALL if one.name.startswith(wanted) and not (unconfined and _harms_others(one))]
    start = time.monotonic()
    failures: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder, adopting_orphans():
        canaries = Canaries(Path(folder))
        for submission in chosen:
            outcome = run(submission, canaries, without=without)
            slowest = max(slowest, outcome.seconds)
            if outcome.wrong:
                failures.append(submission.name)
                print(f"{submission.name}: {'; '.join(outcome.wrong)}", flush=True)
            if "-v" in arguments:
                print(f"{submission.name} {outcome.seconds:.2f} s: {outcome.said[-300:]!r}", flush=True)
        canaries.close()
    kinds = Counter(one.name.partition("/")[0] for one in chosen)
    print(", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    what = "noticed by a canary" if unconfined else "escaped, passed or came late"
    seconds = time.monotonic() - start
    print(f"{len(chosen)} submissions in {seconds:.0f} s: {len(failures)} {what}; the slowest took {slowest:.2f} s")
    return 0 if unconfined else int(bool(failures))


def _harms_others(submission: Submission) -> bool:
    if submission.name.startswith(("reads", "network")):
        return False
    aims = any(canary in submission.code for canary in ("OUTSIDE", "PRECIOUS", "VICTIM"))
    return not aims or "mount" in submission.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
