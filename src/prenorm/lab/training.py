"""One small training: a model of a variant, some hundred steps of real text, and what it reaches on held-out text."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..ops.cross_entropy import cross_entropy
from .model import SMALL, Sizes, VariantLM
from .text import draw_rows, python_text

BETAS = (0.9, 0.98)  # Adam's, those of Vaswani et al. 2017 and Xiong et al. 2020
HELDOUT_ROWS = 256
HELDOUT_SEED = 12345  # all models are scored on the same rows


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCell:
    """A training by Adam. The learning rate rises for `warmup` steps in a straight line and then stays."""

    variant: str
    start: str
    depth: int
    rate: float
    warmup: int
    steps: int
    seed: int
    sizes: Sizes = SMALL

    @property
    def cost(self) -> float:
        """In blocks and steps."""
        return float((self.depth + 1) * self.steps)

    def measure(self) -> dict[str, Any]:
        """`loss`: on held-out text after the last step, nats a byte; None where a training loss was not finite.

        `curve`: the training losses of the steps. `parameters`: how many there are.
        """
        model = VariantLM(self.variant, self.depth, self.start, sizes=self.sizes, seed=self.seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate, betas=BETAS, fused=True)
        generator = torch.Generator().manual_seed(self.seed)
        curve: list[float] = []
        for step in range(1, self.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, step / max(1, self.warmup))
            rows = draw_rows(python_text().training, self.sizes.batch, self.sizes.context, generator)
            loss = cross_entropy(model(rows[:, :-1]), rows[:, 1:])
            if not math.isfinite(float(loss.detach())):
                break
            curve.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        heldout = _heldout_loss(model) if len(curve) == self.steps else math.nan
        return {
            "loss": heldout if math.isfinite(heldout) else None,
            "curve": curve,
            "parameters": sum(one.numel() for one in model.parameters()),
        }


@torch.no_grad()
def _heldout_loss(model: VariantLM) -> float:
    generator = torch.Generator().manual_seed(HELDOUT_SEED)
    rows = draw_rows(python_text().heldout, HELDOUT_ROWS, model.sizes.context, generator)
    return float(cross_entropy(model(rows[:, :-1]), rows[:, 1:]))
