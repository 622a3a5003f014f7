"""What the three steps of an attempt share: the block, values for its parameters, and the remaining work."""

import time

import torch
from torch import Tensor

from ..formula.parameters import Pieces, Raw
from ..subject.learner import SINGLE, Built
from .explanation import OutOfTimeError
from .sizes import Fit
from .trials import Base, Probe, Trials
from .work import Work


class Attempt:
    """An attempt at an explanation, with the sizes and the parameters of one fit; begin, and begin again with more.

    most: the switches that are turned together, at most, in each of the three steps.
    first_step: what explains one token, once that is known; tried: with how many switches it was sought in vain.
    """

    def __init__(
        self, built: Built, fit: Fit, generator: torch.Generator, *, tolerance: float, dtype: torch.dtype
    ) -> None:
        self.built, self.generator, self.tolerance, self.dtype = built, generator, tolerance, dtype
        self.sizes, self.found, self.fit = fit.sizes, fit.found, fit
        self.trials = Trials(self.sizes.num_heads, self.check_time, Work(0))
        self.raw = built.draw(generator, dtype)
        self.most = 0
        self.first_step: tuple[list[Base], list[Pieces]] | None = None
        self.tried = -1

    def begin(self, most: int, work: Work) -> None:
        """Set the switches that are turned together, and the work for all steps."""
        self.most, self.trials.work = most, work

    def check_time(self) -> None:
        """Raise OutOfTimeError if the time for searching is over; the rest is for the checks that follow.

        On a busy machine all of the time may be over first, which is no fault of the block either.
        """
        learner = self.built.learner
        if time.thread_time() > learner.search_until or time.monotonic() > learner.deadline:
            raise OutOfTimeError("the time limit of the search, of which a larger --timeout gives it more")

    def probe(self, raw: Raw) -> Probe:
        """A call with two sequences of the usual length."""
        return self._probe(raw, self._drawn(2, self.tokens))

    def of_one_token(self, raw: Raw) -> Probe:
        """A call with sequences of one token, repeated where the block does not run on one."""
        return self._probe(raw, self._drawn(SINGLE, 1).repeat(1, self.built.lengths.single, 1))

    def of_two_tokens(self, raw: Raw) -> Probe:
        """A call with sequences of two tokens; where the block does not run on one, of one that is repeated."""
        single = self.built.lengths.single
        return self._probe(raw, self._drawn(2, 2) if single == 1 else self._drawn(2, 1).repeat(1, single, 1))

    @property
    def tokens(self) -> int:
        """The usual length of a sequence."""
        return self.built.lengths.usual

    def _drawn(self, batch: int, tokens: int) -> Tensor:
        x = torch.randn(batch, tokens, self.sizes.d_model, generator=self.generator, dtype=torch.float64)
        sizes = torch.tensor([4.0, 8.0]).repeat(SINGLE)[:batch, None, None]  # so large that eps hardly matters
        return ((x + 0.3) * sizes).to(self.dtype)

    def _probe(self, raw: Raw, x: Tensor) -> Probe:
        return Probe(raw, x, self.built.run(raw, x).y, self.tolerance)
