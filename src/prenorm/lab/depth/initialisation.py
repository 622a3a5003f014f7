"""What activations and gradients look like in a model that has learned nothing yet, layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from ...ops.cross_entropy import cross_entropy
from ..model import SMALL, Sizes, VariantLM
from ..text import draw_rows, python_text


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialCell:
    """One model, one batch, in float64, whose range holds what float32 would lose at depth 128."""

    variant: str
    start: str
    depth: int
    seed: int
    sizes: Sizes = SMALL

    @property
    def cost(self) -> float:
        """As that of a training, in blocks and steps."""
        return 6.0 * self.depth

    def measure(self) -> dict[str, Any]:
        """Norms of activations and gradients: activations before and after each block, weights block by block.

        `activation`: root mean square of the residual stream. `activation_gradient`: norm of the loss's gradient with
        respect to it. `weight_gradient`, `last_ffn_gradient`: norm of that with respect to all weights of a block, and
        to the last matrix of its feed-forward. `update`: how far the final hidden states move (norm) per unit of
        learning rate when all matrices of the blocks take one step against their gradient. None: not finite.
        """
        model = VariantLM(self.variant, self.depth, self.start, sizes=self.sizes, seed=self.seed, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.seed)
        rows = draw_rows(python_text().training, self.sizes.batch, self.sizes.context, generator)
        streams = model.streams(rows[:, :-1])
        for stream in streams:
            stream.retain_grad()
        loss = cross_entropy(model.lm_head(model.final_norm(streams[-1])), rows[:, 1:])
        loss.backward()
        blocks = [[one.grad for one in block.parameters() if one.grad is not None] for block in model.layers]
        return {
            "loss": _finite(loss),
            "activation": [_finite(stream.square().mean().sqrt()) for stream in streams],
            "activation_gradient": [_norm([stream.grad]) for stream in streams],
            "weight_gradient": [_norm(gradients) for gradients in blocks],
            "last_ffn_gradient": [_norm([last.grad]) for last in model.last_matrices()],
            "update": _finite(_update(model, rows[:, :-1])),
        }


def _update(model: VariantLM, token_ids: Tensor) -> Tensor:
    """The norm of the derivative of the final hidden states along the step, which is exact where a difference is not.

    Source of the question: Wang et al. 2022 (DeepNet), arXiv:2203.00555.
    """
    weights = {name: one.detach() for name, one in model.named_parameters()}
    step = {
        name: -one.grad if name.startswith("layers.") and one.ndim == 2 and one.grad is not None else one.new_zeros(())
        for name, one in model.named_parameters()
    }

    def final(moved: dict[str, Tensor]) -> Tensor:
        return functional_call(model, weights | moved, (token_ids,), {"hidden": True})

    step = {name: one for name, one in step.items() if one.ndim}
    start = {name: weights[name] for name in step}
    return jvp(final, (start,), (step,))[1].norm()


def _norm(tensors: Sequence[Tensor | None]) -> float | None:
    return _finite(torch.stack([one.norm() for one in tensors if one is not None]).norm())


def _finite(number: Tensor) -> float | None:
    value = float(number.detach())
    return value if math.isfinite(value) else None
