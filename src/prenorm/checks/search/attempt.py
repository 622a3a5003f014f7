"""What the three steps of an attempt share: the block, values for its parameters, and the remaining work."""

import time

import torch

from ..formula.parameters import Raw
from ..subject.learner import Built
from .explanation import OutOfTimeError
from .sizes import Fit
from .trials import Probe, Trials

TOKENS = 7


class Attempt:
    """An attempt at an explanation, with the sizes and the parameters of one fit.

    most: the switches that are turned together, at most, in each of the three steps.
    share: how many attempts share the work that one may take.
    """

    def __init__(
        self,
        built: Built,
        fit: Fit,
        generator: torch.Generator,
        *,
        tolerance: float,
        dtype: torch.dtype,
        most: int,
        share: int,
    ) -> None:
        self.built, self.generator, self.tolerance, self.dtype, self.most = built, generator, tolerance, dtype, most
        self.sizes, self.found = fit.sizes, fit.found
        self.trials = self.more_trials()
        self.trials.most_work //= share
        self.raw = built.draw(generator, dtype)

    def more_trials(self) -> Trials:
        """Trials with their own limit of work."""
        return Trials(self.sizes.num_heads, self.check_time)

    def check_time(self) -> None:
        """Raise OutOfTimeError if the time for searching is over; the rest is for the checks that follow."""
        self.built.learner.check_time()
        if time.thread_time() > self.built.learner.search_until:
            raise OutOfTimeError("the time limit of the search, of which a larger --timeout gives it more")

    def probe(self, raw: Raw, tokens: int) -> Probe:
        """A call with two sequences of this length, or 14 sequences of one token."""
        batch = 2 * TOKENS if tokens == 1 else 2
        x = torch.randn(batch, tokens, self.sizes.d_model, generator=self.generator, dtype=torch.float64)
        sizes = torch.tensor([4.0, 8.0]).repeat(TOKENS)[:batch, None, None]  # so large that eps hardly matters
        x = ((x + 0.3) * sizes).to(self.dtype)
        return Probe(raw, x, self.built.run(raw, x).y, self.tolerance)
