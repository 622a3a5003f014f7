"""Questions about the residual stream: its effect on gradients, and its growth."""

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ...blocks.transformer import TransformerBlock
from ...layers.linear import Linear
from ...layers.norm import RMSNorm
from .problem import Answer, Mistake, Problem, Question, shown


@dataclass(frozen=True)
class GradientThroughResiduals(Problem):
    """(1 + c)^N against c^N."""

    layers: int
    slope: float
    topic = "residuals"

    @classmethod
    def draw(cls, rng: Random) -> "GradientThroughResiduals":
        return cls(rng.randint(8, 30), rng.choice([0.05, 0.08, 0.1, 0.15, 0.2, 0.25]))

    def ask(self) -> Question:
        n, c = self.layers, self.slope
        return Question(
            text=(
                f"A residual stream has {n} sublayers, x -> x + f(x). Let every f have the Jacobian {c} times the "
                "identity. By what factor is the gradient at the bottom larger than the gradient at the top?"
            ),
            answer=(1 + c) ** n,
            reason=f"Each sublayer multiplies the gradient by 1 + {c}; {n} of them by {1 + c:g}^{n}.",
            experiment=f"{n} times x + linear(x), with a Linear of weight {c} I, and backward()",
            mistakes=(
                Mistake(value=c**n, why=f"{c}^{n} = {c**n:.3g} is what is left without the residual: x -> f(x)."),
                Mistake(value=1 + n * c, why=f"1 + {n} * {c} leaves out all paths that go through more than one f."),
                Mistake(value=n * (1 + c), why="Factors of a chain are multiplied, not added."),
                Mistake(value=1.0, why="The direct path alone gives 1; the ways through the sublayers come on top."),
            ),
        )

    def demonstrate(self) -> Answer:
        return _gradient(self.layers, self.slope, residual=True)


@dataclass(frozen=True)
class DepthWithoutResiduals(Problem):
    """The depth at which the gradient of a chain falls below a thousandth."""

    slope: float
    topic = "residuals"

    @classmethod
    def draw(cls, rng: Random) -> "DepthWithoutResiduals":
        return cls(rng.randint(30, 80) / 100)

    def ask(self) -> Question:
        c, n = self.slope, self._depth()
        return Question(
            text=(
                f"Without residuals, x -> f(x), where every f has the Jacobian {c} times the identity: from how many "
                "layers on is the gradient at the bottom less than a thousandth of that at the top?"
            ),
            answer=n,
            tolerance=0.0,
            reason=(
                f"{c}^n < 0.001 means n > ln(0.001) / ln({c}) = {math.log(0.001) / math.log(c):.2f}. With residuals it "
                f"would be {shown((1 + c) ** n)} times as large as at the top by then."
            ),
            experiment=f"Linears of weight {c} I on top of each other, until backward() gives less than 0.001",
            mistakes=(
                Mistake(value=n - 1, why=f"After {n - 1} layers it is still {c ** (n - 1):.3g}."),
                Mistake(value=n + 1, why=f"It is already below with {n} layers: {c**n:.3g}."),
                Mistake(
                    value=math.ceil(0.999 / (1 - c)),
                    why=f"The gradient does not lose {1 - c:.2g} a layer, it is multiplied by {c}.",
                ),
            ),
        )

    def demonstrate(self) -> Answer:
        layers = 1
        while _gradient(layers, self.slope, residual=False) >= 0.001:
            layers += 1
        return layers

    def _depth(self) -> int:
        return math.floor(math.log(0.001) / math.log(self.slope)) + 1


@dataclass(frozen=True)
class StreamGrowth(Problem):
    """Squares of orthogonal contributions add up."""

    blocks: int
    size: float
    topic = "residuals"

    @classmethod
    def draw(cls, rng: Random) -> "StreamGrowth":
        return cls(rng.randint(4, 40), rng.choice([0.5, 0.8, 1.5, 2.0]))

    def ask(self) -> Question:
        n, r = self.blocks, self.size
        return Question(
            text=(
                f"A token enters {n} pre-norm blocks with root mean square 1. Both sublayers of each block add a "
                f"vector of root mean square {r}, orthogonal to everything before. What is the root mean square "
                "of the stream at the end?"
            ),
            answer=math.sqrt(1 + 2 * n * r * r),
            reason=(
                f"Squares of orthogonal vectors add up: sqrt(1 + {2 * n} * {r}^2). The stream grows with the root of "
                "the depth, which is why a last norm follows the last block."
            ),
            experiment=f"{2 * n} orthogonal vectors, each brought to its size by RMSNorm, added up",
            mistakes=(
                Mistake(value=1 + 2 * n * r, why="Lengths would add up only if all vectors pointed the same way."),
                Mistake(
                    value=math.sqrt(1 + n * r * r), why=f"A block has two sublayers: {n} blocks add {2 * n} vectors."
                ),
                Mistake(value=1 + 2 * n * r * r, why="That is the mean square; the root is missing."),
                Mistake(value=1.0, why="The norms stand in the branches; nothing brings the stream itself back to 1."),
            ),
        )

    def demonstrate(self) -> Answer:
        vectors = _orthogonal(2 * self.blocks + 1)
        norm = RMSNorm(vectors.shape[1], eps=1e-12, dtype=torch.float64)
        stream = norm(vectors[0]) + self.size * norm(vectors[1:]).sum(0)
        return float(stream.detach().square().mean().sqrt())


@dataclass(frozen=True)
class SilentSublayers(Problem):
    """With output weights of zero a block is the identity."""

    blocks: int
    value: float
    topic = "residuals"

    @classmethod
    def draw(cls, rng: Random) -> "SilentSublayers":
        return cls(rng.randint(2, 6), rng.choice([-1, 1]) * rng.randint(11, 99) / 10)

    def ask(self) -> Question:
        n, a = self.blocks, self.value
        return Question(
            text=(
                f"In {n} pre-norm blocks the weights of attention's output projection and of the feed-forward's down "
                f"projection are all zero. One feature of a token is {a}. What is it after the {n} blocks?"
            ),
            answer=a,
            reason="Both branches give zeros, and x + 0 + 0 is x: such a block is the identity, at any depth.",
            experiment=f"{n} TransformerBlocks with these weights at zero, called",
            mistakes=(
                Mistake(value=0.0, why="Zero is what the branches give; the stream goes on beside them."),
                Mistake(value=a * 2**n, why="The branches would have to give x itself to double it; they give zeros."),
                Mistake(value=1.0, why="Nothing normalises the stream: the norms stand in the branches."),
                Mistake(value=a * 3**n, why="The two residuals add what the branches give, and that is zero."),
            ),
        )

    def demonstrate(self) -> Answer:
        torch.manual_seed(0)
        x = torch.randn(1, 3, 8, dtype=torch.float64)
        x[0, 1, 5] = self.value
        for _ in range(self.blocks):
            block = TransformerBlock(8, 2, 16, dtype=torch.float64)
            with torch.no_grad():
                block.attn.o_proj.weight.zero_()
                block.ffn.down_proj.weight.zero_()
                x = block(x)
        return float(x[0, 1, 5])


def _gradient(layers: int, slope: float, *, residual: bool) -> float:
    """The gradient at the bottom of a chain of Linears of weight slope * I, for a gradient of 1 at the top."""
    linear = Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(slope * torch.eye(4))
    x = start = torch.ones(4, dtype=torch.float64, requires_grad=True)
    for _ in range(layers):
        x = x + linear(x) if residual else linear(x)
    x.sum().backward()
    assert start.grad is not None
    return float(start.grad[0])


def _orthogonal(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(128, 128, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q[:count]
