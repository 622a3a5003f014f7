"""Runs every hostile submission: `python -m tests.checks.hostile [--unconfined] [kinds or names]`.

--unconfined leaves out every layer, for the kinds that do no lasting harm: the canaries must then notice.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import control, files, forging, network, processes, resources
from .canaries import Canaries, adopt_orphans
from .harness import run
from .submission import Submission

ALL: list[Submission] = [
    one for module in (processes, files, network, resources, control, forging) for one in module.ALL
]
HARMLESS = ("reads", "network")  # what may be run without a sandbox, as long as it is one's own machine
LAYERS = ("namespaces", "mounts", "landlock", "seccomp")


def main(arguments: list[str]) -> int:
    """Run them, and print what went wrong and how many there were."""
    unconfined = "--unconfined" in arguments
    wanted = [argument for argument in arguments if not argument.startswith("-")] or (HARMLESS if unconfined else [""])
    chosen = [one for one in ALL if any(one.name.startswith(prefix) for prefix in wanted)]
    adopt_orphans()
    start = time.monotonic()
    failures: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        canaries = Canaries(Path(folder))
        for submission in chosen:
            outcome = run(submission, canaries, LAYERS if unconfined else ())
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
