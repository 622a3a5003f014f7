"""Questions about widths and stacks: why d_model is the same everywhere, and the size of N blocks."""

from dataclasses import dataclass
from random import Random

import torch
from torch import nn

from ...blocks.transformer import TransformerBlock
from ...layers.attention import SelfAttention
from ...layers.linear import Linear
from ...layers.swiglu import SwiGLU
from .problem import Answer, Mistake, Problem, Question


@dataclass(frozen=True)
class AnotherWidth(Problem):
    """Vectors of two widths cannot be added."""

    d_model: int
    width: int
    topic = "width"

    @classmethod
    def draw(cls, rng: Random) -> "AnotherWidth":
        return cls(*rng.sample([24, 32, 48, 64, 96, 128], 2))

    def ask(self) -> Question:
        d, w = self.d_model, self.width
        return Question(
            text=(
                f"The stream has d_model = {d}, but the last matrix of a sublayer returns {w} features. What does x + "
                "sublayer(norm(x)) do?"
            ),
            answer="it raises an error",
            reason=(
                f"Shapes (..., {d}) and (..., {w}) cannot be added. That is why everything that writes to the stream "
                "writes d_model features, and why blocks of one width can be stacked without anything between them."
            ),
            experiment=f"x of {d} features + Linear({d}, {w})(x)",
            mistakes=(
                Mistake(
                    value=f"it gives {max(d, w)} features",
                    why="Nothing is filled up with zeros; only a dimension of 1 would be repeated.",
                ),
                Mistake(value=f"it gives {min(d, w)} features", why="Nothing is cut off."),
                Mistake(
                    value=f"it gives {d + w} features",
                    why=f"Adding is not concatenating, which would give {d + w}.",
                ),
            ),
        )

    def demonstrate(self) -> Answer:
        x = torch.ones(3, self.d_model)
        try:
            y = x + Linear(self.d_model, self.width)(x)
        except RuntimeError:
            return "it raises an error"
        return f"it gives {y.shape[-1]} features"


@dataclass(frozen=True)
class PriceOfWidening(Problem):
    """A stream that changes its width needs a matrix on the residual path."""

    d_model: int
    wider: int
    topic = "width"

    @classmethod
    def draw(cls, rng: Random) -> "PriceOfWidening":
        d_model = rng.choice([32, 48, 64, 96])
        return cls(d_model, d_model + rng.choice([8, 16, 24]))

    def ask(self) -> Question:
        d, w = self.d_model, self.wider
        return Question(
            text=(
                f"Suppose that one block did change the width, from {d} to {w}. Then the residual can no longer be a "
                "plain sum: x has to go through a matrix first. How many weights does that matrix have?"
            ),
            answer=d * w,
            tolerance=0.0,
            reason=(
                f"It leads from {d} to {w} features: {d} * {w} weights, and from then on every gradient on the stream "
                "is multiplied by that matrix instead of by 1."
            ),
            experiment=f"Linear({d}, {w}), counted",
            mistakes=(
                Mistake(value=0, why=f"Without a matrix, {d} and {w} features cannot be added."),
                Mistake(value=w * w, why=f"It reads {d} features, not {w}."),
                Mistake(
                    value=d * (w - d), why=f"That makes only the {w - d} new features; the other {d} are mixed too."
                ),
                Mistake(value=d + w, why="A matrix has a weight for every pair of an input and an output."),
            ),
        )

    def demonstrate(self) -> Answer:
        return parameters(Linear(self.d_model, self.wider))


@dataclass(frozen=True)
class NumbersOut(Problem):
    """A stack keeps the shape of its input: batch x seq x d_model numbers."""

    batch: int
    seq: int
    d_model: int
    d_ff: int
    blocks: int
    topic = "width"

    @classmethod
    def draw(cls, rng: Random) -> "NumbersOut":
        d_model = rng.choice([16, 24, 32])
        return cls(rng.randint(2, 4), rng.randint(5, 12), d_model, d_model * rng.choice([2, 3]), rng.randint(4, 6))

    def ask(self) -> Question:
        b, s, d, f, n = self.batch, self.seq, self.d_model, self.d_ff, self.blocks
        return Question(
            text=(
                f"x has the shape ({b}, {s}, {d}) and goes through {n} blocks with d_ff = {f}. How many numbers does "
                "the last block give?"
            ),
            answer=b * s * d,
            tolerance=0.0,
            reason=f"Every block keeps the shape: {b} * {s} * {d}, however many there are and however wide d_ff is.",
            experiment=f"x through {n} TransformerBlocks; y.numel()",
            mistakes=(
                Mistake(
                    value=b * s * f,
                    why=f"d_ff = {f} is the width inside the feed-forward only; its down projection leads back to {d}.",
                ),
                Mistake(
                    value=b * s * d * n,
                    why=f"The outputs of the {n} blocks are not concatenated; each adds to the same stream.",
                ),
                Mistake(value=s * d, why=f"That is one sequence of the {b}."),
                Mistake(value=b * d, why=f"Every one of the {s} tokens keeps a vector of its own."),
            ),
        )

    def demonstrate(self) -> Answer:
        stack = nn.Sequential(*(TransformerBlock(self.d_model, 2, self.d_ff) for _ in range(self.blocks)))
        return stack(torch.zeros(self.batch, self.seq, self.d_model)).numel()


@dataclass(frozen=True)
class StackedParameters(Problem):
    """N (4 d^2 + 3 d d_ff + 2 d)."""

    d_model: int
    d_ff: int
    blocks: int
    topic = "stacking"

    @classmethod
    def draw(cls, rng: Random) -> "StackedParameters":
        d_model = rng.choice([16, 24, 32, 48, 64])
        return cls(d_model, d_model * rng.choice([2, 3]) + rng.choice([0, 8]), rng.randint(2, 9))

    def ask(self) -> Question:
        d, f, n = self.d_model, self.d_ff, self.blocks
        return Question(
            text=f"How many parameters do {n} blocks with d_model = {d} and d_ff = {f} have (no biases)?",
            answer=n * (4 * d * d + 3 * d * f + 2 * d),
            tolerance=0.0,
            reason=(
                f"A block: four matrices {d} x {d} in attention, three of {d} x {f} in SwiGLU, two norms of {d}: "
                f"{4 * d * d} + {3 * d * f} + {2 * d}. Times {n}, because blocks share nothing."
            ),
            experiment=f"{n} TransformerBlocks, counted",
            mistakes=(
                Mistake(
                    value=4 * d * d + 3 * d * f + 2 * d, why=f"That is one block; {n} blocks have {n} times as many."
                ),
                Mistake(
                    value=n * (3 * d * d + 3 * d * f + 2 * d),
                    why="Attention has four matrices: the output projection is missing.",
                ),
                Mistake(value=n * (4 * d * d + 2 * d * f + 2 * d), why="SwiGLU has three matrices: gate, up and down."),
                Mistake(value=n * (4 * d * d + 3 * d * f), why=f"The norms' weights are missing, {2 * d} a block."),
                Mistake(value=n * (4 * d * d + 3 * d * f + d), why="A block has two norms, with a weight each."),
            ),
        )

    def demonstrate(self) -> Answer:
        stack = nn.ModuleList(TransformerBlock(self.d_model, 2, self.d_ff) for _ in range(self.blocks))
        return parameters(stack)


@dataclass(frozen=True)
class HeadsAreFree(Problem):
    """Attention's parameters do not depend on the number of heads."""

    d_model: int
    heads: int
    topic = "stacking"

    @classmethod
    def draw(cls, rng: Random) -> "HeadsAreFree":
        return cls(rng.choice([24, 48, 72, 96]), rng.choice([3, 4, 6, 12]))

    def ask(self) -> Question:
        d, h = self.d_model, self.heads
        return Question(
            text=f"How many weights does multi-head attention have with d_model = {d} and {h} heads (q, k, v, "
            "o, no biases)?",
            answer=4 * d * d,
            tolerance=0.0,
            reason=f"Heads divide d_model among them: {h} heads of {d // h} features. The four matrices are {d} x "
            f"{d} for any number.",
            experiment=f"SelfAttention({d}, {h}), counted",
            mistakes=(
                Mistake(value=4 * d * d * h, why=f"The {h} heads do not get {d} features each; they share them."),
                Mistake(value=3 * d * d, why="The output projection is missing."),
                Mistake(value=4 * d * (d // h), why=f"That is one head's share; there are {h}."),
            ),
        )

    def demonstrate(self) -> Answer:
        return parameters(SelfAttention(self.d_model, self.heads))


@dataclass(frozen=True)
class EqualWidth(Problem):
    """SwiGLU has three matrices, so d_ff is two thirds."""

    d_model: int
    factor: int
    topic = "stacking"

    @classmethod
    def draw(cls, rng: Random) -> "EqualWidth":
        return cls(3 * rng.choice([16, 20, 24, 32, 40]), rng.randint(3, 6))

    def ask(self) -> Question:
        d, m = self.d_model, self.factor
        return Question(
            text=(
                f"The classical feed-forward has two matrices, {d} to {m * d} and back. What d_ff gives a SwiGLU with "
                "exactly as many weights?"
            ),
            answer=2 * m * d // 3,
            tolerance=0.0,
            reason=(
                f"2 * {d} * {m * d} = 3 * {d} * d_ff, so d_ff = 2/3 * {m * d}. (With 4 d_model that is the 8/3 d_model "
                "of many models.)"
            ),
            experiment="The width at which SwiGLU's weights, counted, are as many as those of two Linears",
            mistakes=(
                Mistake(
                    value=m * d,
                    why=f"With the same width SwiGLU has half as many again: three matrices of {d} x {m * d}.",
                ),
                Mistake(value=m * d // 2, why="The classical one has two matrices and SwiGLU three: 2/3, not 1/2."),
                Mistake(value=3 * m * d // 2, why="The wrong way round: three matrices have to be narrower than two."),
                Mistake(value=m * d // 3, why="Two matrices' weights are shared out among three: 2/3, not 1/3."),
            ),
        )

    def demonstrate(self) -> Answer:
        d, wide = self.d_model, self.factor * self.d_model
        wanted = parameters(Linear(d, wide)) + parameters(Linear(wide, d))
        return wanted // parameters(SwiGLU(d, 1))


def parameters(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(one.numel() for one in module.parameters())
