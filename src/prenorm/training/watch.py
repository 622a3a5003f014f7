"""What a run must report: a loss or gradient that is not finite, a gradient that overflows, a loss that jumps."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from ..errors import PrenormError
from .config import OnNan
from .data.corpus import Say
from .precision import LossScale

WINDOW, RECENT = 64, 16  # losses that the noise is estimated from, and those that a jump is measured from
SIGMAS, SHARE = 6.0, 0.05  # a jump is above their median by both: so many standard deviations, and this share of it
MOST_SKIPPED = 20  # steps in a row; after these, skipping another one will not help
MOST_BATCHES = 100  # written to a run's folder

WriteBatch = Callable[[int, str], str]  # (step, reason): writes the step's batch to a file, and says where


class Watch:
    """Looks at the loss and the gradient's norm of every step, and decides whether the weights take the step.

    skipped: how many steps were left out, by reason. `OVERFLOW` is a gradient too large for float16 at this loss scale,
    which is part of scaling; `NOT_FINITE` is anything else, and the batch is then written to a file.
    """

    OVERFLOW, NOT_FINITE = "overflow", "not finite"

    def __init__(self, on_nan: OnNan, scale: LossScale | None, say: Say, write_batch: WriteBatch) -> None:
        self.skipped = {self.OVERFLOW: 0, self.NOT_FINITE: 0}
        self._on_nan, self._scale, self._say, self._write_batch = on_nan, scale, say, write_batch
        self._in_a_row = self._written = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def reason_to_skip(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Why the weights must not take this step; None where they may.

        Raises PrenormError where the run must end.
        """
        finite = math.isfinite(grad_norm)
        if math.isfinite(loss) and self._scale:
            at_the_end = self._scale.scale == 1
            self._scale.succeeded() if finite else self._scale.overflowed()
            if not finite and not at_the_end:
                self.skipped[self.OVERFLOW] += 1
                return self.OVERFLOW
        if math.isfinite(loss) and finite:
            self._in_a_row = 0
            self._look_for_a_jump(step, loss)
            return None
        self.skipped[self.NOT_FINITE] += 1
        self._in_a_row += 1
        found = (
            f"the loss must stay a finite number, but at step {step} it is {loss} and its gradient's norm {grad_norm}"
        )
        where = self._written_to(step, "not-finite")
        if self._on_nan == "stop":
            raise PrenormError(
                f"{found}. {where} The weights are as they were before it, and so are the checkpoints: start again "
                "with lower learning rates, or go on with --resume --on-nan skip, which leaves out such steps."
            )
        if self._in_a_row == MOST_SKIPPED:
            raise PrenormError(
                f"{found}, and so it was in the {MOST_SKIPPED - 1} steps before it, which were skipped. {where} "
                "Checkpoints are from before that; start again with lower learning rates."
            )
        self._say(f"Skipped step {step:,}: {found}. {where}")
        return self.NOT_FINITE

    def _look_for_a_jump(self, step: int, loss: float) -> None:
        if len(self._losses) >= RECENT:
            losses = list(self._losses)
            median = statistics.median(losses[-RECENT:])
            # The standard deviation, by the differences of neighbours, which a fall over many steps does not touch.
            spread = statistics.median(abs(one - before) for before, one in pairwise(losses)) / 0.954
            if loss > median + max(SIGMAS * spread, SHARE * median):
                where = self._written_to(step, "spike")
                self._say(f"The loss jumped to {loss:.3f} at step {step:,}, from about {median:.3f}. {where}")
        self._losses.append(loss)

    def _written_to(self, step: int, why: str) -> str:
        if self._written == MOST_BATCHES:
            return f"(Its batch is not written: there are {MOST_BATCHES} already.)"
        self._written += 1
        return f"Its batch, with its documents, is in {self._write_batch(step, why)}."

    def to_fields(self) -> dict[str, Any]:
        """The state, for `load_fields`."""
        counts = {"skipped": dict(self.skipped), "in_a_row": self._in_a_row, "written": self._written}
        return {**counts, "losses": list(self._losses)}

    def load_fields(self, fields: Mapping[str, Any]) -> None:
        """Restore what `to_fields` returned."""
        self.skipped |= fields["skipped"]
        self._in_a_row, self._written = int(fields["in_a_row"]), int(fields["written"])
        self._losses.extend(fields["losses"])
