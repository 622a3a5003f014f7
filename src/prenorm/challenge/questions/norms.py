"""Questions about norms: what RMSNorm computes, and how its place affects gradients."""

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ...layers.linear import Linear
from ...layers.norm import RMSNorm
from ...ops.norm import rms_norm
from .problem import Answer, Mistake, Problem, Question

FORMS = ("x + f(norm(x))", "norm(x + f(x))", "norm(x) + f(x)", "f(norm(x))")


@dataclass(frozen=True)
class PostNormPath(Problem):
    """Each norm on the stream divides the direct path's gradient by sqrt(1 + v)."""

    sublayers: int
    variance: float
    topic = "pre-norm"

    @classmethod
    def draw(cls, rng: Random) -> "PostNormPath":
        return cls(2 * rng.randint(2, 12), rng.choice([0.25, 0.5, 1.0, 1.5]))

    def ask(self) -> Question:
        n, v = self.sublayers, self.variance
        return Question(
            text=(
                f"Post-norm, x -> norm(x + f(x)), {n} sublayers. x has mean square 1, and every f(x) has mean square "
                f"{v} and is orthogonal to x. What is left of a gradient of 1 on its way down the direct "
                "path, past all f (in a direction that the norms do not project out)?"
            ),
            answer=(1 + v) ** (-n / 2),
            reason=(
                f"x + f(x) has root mean square sqrt(1 + {v}), and the norm divides by it, gradients too: "
                f"{1 + v:g}^(-{n}/2). Pre-norm leaves 1, whatever the depth."
            ),
            experiment=f"{n} times RMSNorm(x + f) with orthogonal f, and backward()",
            mistakes=(
                Mistake(value=1.0, why="1 is what pre-norm leaves; here every sublayer's norm stands on the path."),
                Mistake(
                    value=(1 + v) ** -n, why=f"The norm divides by the root of the mean square {1 + v:g}, not by it."
                ),
                Mistake(value=(1 + v) ** (n / 2), why="The norm makes x + f(x) smaller, so the gradient shrinks too."),
                Mistake(
                    value=1 / math.sqrt(1 + n * v),
                    why="The stream does not grow here: each norm brings it back to 1, and each takes its factor.",
                ),
            ),
        )

    def demonstrate(self) -> Answer:
        square = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        vectors = torch.linalg.qr(square).Q * 8  # root mean square 1, orthogonal
        norm = RMSNorm(64, eps=1e-12, dtype=torch.float64)
        x = start = vectors[0].clone().requires_grad_()
        for i in range(self.sublayers):
            x = norm(x + math.sqrt(self.variance) * vectors[1 + i])
        x.backward(vectors[-1])
        assert start.grad is not None
        return float(start.grad @ vectors[-1] / 64)


@dataclass(frozen=True)
class WhereTheNormStands(Problem):
    """Only one of four forms leaves the direct path unchanged."""

    layers: int
    size: float
    topic = "pre-norm"

    @classmethod
    def draw(cls, rng: Random) -> "WhereTheNormStands":
        return cls(rng.randint(2, 12), rng.choice([2.0, 3.0, 5.0, 8.0]))

    def ask(self) -> Question:
        n, a = self.layers, self.size
        return Question(
            text=(
                f"{n} sublayers on top of each other; every f gives zeros, and x has root mean square {a:g}. In which "
                "form does the gradient at the bottom equal the gradient at the top?"
            ),
            answer=FORMS[0],
            reason=f"With f = 0 only x + f(norm(x)) is the identity, {n} times over.",
            experiment="all four forms with a Linear of zeros, and backward(): where the gradient comes down unchanged",
            mistakes=(
                Mistake(
                    value=FORMS[1],
                    why=f"norm(x + f(x)): the first norm divides by {a:g}, and takes the part along x away.",
                ),
                Mistake(
                    value=FORMS[2], why=f"norm(x) + f(x): the norm is on the stream, and the first divides by {a:g}."
                ),
                Mistake(value=FORMS[3], why="f(norm(x)): there is no residual; f = 0 gives no gradient at all."),
            ),
        )

    def demonstrate(self) -> Answer:
        norm, f = RMSNorm(16, eps=1e-12, dtype=torch.float64), Linear(16, 16, dtype=torch.float64)
        torch.nn.init.zeros_(f.weight)
        sublayers = (
            lambda x: x + f(norm(x)),
            lambda x: norm(x + f(x)),
            lambda x: norm(x) + f(x),
            lambda x: f(norm(x)),
        )
        cotangent = torch.arange(16, dtype=torch.float64)
        unchanged = []
        for form, sublayer in zip(FORMS, sublayers, strict=True):
            x = start = (self.size * norm(cotangent.sin()).detach()).requires_grad_()
            for _ in range(self.layers):
                x = sublayer(x)
            x.backward(cotangent)
            if torch.allclose(_gradient_of(start), cotangent):
                unchanged.append(form)
        return " and ".join(unchanged)


@dataclass(frozen=True)
class RMSNormByHand(Problem):
    """Four numbers, normalised."""

    values: list[int]
    topic = "pre-norm"

    @classmethod
    def draw(cls, rng: Random) -> "RMSNormByHand":
        return cls(
            [rng.choice([-1, 1]) * rng.randint(1, 9), *(rng.randint(1, 9) for _ in range(2)), rng.randint(10, 14)]
        )

    def ask(self) -> Question:
        x, first = self.values, self.values[0]
        squares = sum(one * one for one in x)
        mean = sum(x) / 4
        spread = math.sqrt(sum((one - mean) ** 2 for one in x) / 4)
        return Question(
            text=f"RMSNorm of {x}, weight 1, eps 0: what does the first number, {first}, become?",
            answer=first / math.sqrt(squares / 4),
            reason=f"The mean of the squares is {squares} / 4 = {squares / 4:g}; {first} / sqrt({squares / 4:g}).",
            experiment="prenorm.functional.rms_norm of these numbers",
            mistakes=(
                Mistake(
                    value=(first - mean) / spread,
                    why=f"That is LayerNorm: RMSNorm does not subtract the mean, {mean:g}.",
                ),
                Mistake(
                    value=first / math.sqrt(squares),
                    why=f"That divides by the length, sqrt({squares}); RMSNorm takes the mean of the squares.",
                ),
                Mistake(value=first / (squares / 4), why="The root is missing."),
                Mistake(
                    value=first / (sum(map(abs, x)) / 4),
                    why="That divides by the mean size; squares first, then the mean, then the root.",
                ),
            ),
        )

    def demonstrate(self) -> Answer:
        x = torch.tensor(self.values, dtype=torch.float64)
        return float(rms_norm(x, torch.ones(4, dtype=torch.float64), eps=0.0)[0])


@dataclass(frozen=True)
class NormGradientScale(Problem):
    """The larger the stream, the smaller the gradient through a norm."""

    factor: int
    topic = "pre-norm"

    @classmethod
    def draw(cls, rng: Random) -> "NormGradientScale":
        return cls(rng.randint(3, 60))

    def ask(self) -> Question:
        a = self.factor
        return Question(
            text=(
                f"x is multiplied by {a} before it enters an RMSNorm (eps = 0). The output is the same as before. By "
                "what factor does the gradient change that the norm hands back to its input?"
            ),
            answer=1 / a,
            reason=(
                f"y(a x) = y(x) for every a, so dy/dx has to shrink as x grows: the factor is 1/{a}. Late blocks, "
                "which read a large stream, hand back small gradients."
            ),
            experiment=f"backward() through RMSNorm at x and at {a} x; the ratio of the gradients' sizes",
            mistakes=(
                Mistake(value=1.0, why="The output stays the same, but a step in x is a smaller part of a larger x."),
                Mistake(value=float(a), why="The other way round: the norm divides by the size of x."),
                Mistake(
                    value=1 / a**2,
                    why="The norm divides by the root of the mean square, which grows like x, not like x^2.",
                ),
            ),
        )

    def demonstrate(self) -> Answer:
        norm = RMSNorm(8, eps=1e-12, dtype=torch.float64)
        sizes = []
        for factor in (1, self.factor):
            x = (factor * torch.linspace(-1, 2, 8, dtype=torch.float64)).requires_grad_()
            norm(x)[3].backward()
            sizes.append(float(_gradient_of(x).norm()))
        return sizes[1] / sizes[0]


def _gradient_of(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad
