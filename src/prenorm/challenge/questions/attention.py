"""Questions about attention: positions, the scale, masks."""

import math
from dataclasses import dataclass
from random import Random

import torch

from ...blocks.transformer import TransformerBlock
from ...layers.rope import RotaryEmbedding
from .problem import Answer, Mistake, Problem, Question

MAX_SEQ_LEN = 512


@dataclass(frozen=True)
class SameDistance(Problem):
    """A score depends only on the distance between its query and its key."""

    query: int
    key: int
    moved: int
    topic = "attention"

    @classmethod
    def draw(cls, rng: Random) -> "SameDistance":
        key = rng.randint(5, 60)
        query = key + rng.randint(3, 40)
        return cls(query, key, query + rng.randint(7, 90))

    def ask(self) -> Question:
        q, k, m = self.query, self.key, self.moved
        return Question(
            text=(
                f"With rotary positions, a query at position {q} and a key at position {k} have some score. The same "
                f"query is now at position {m}. At which position (before the query's) must the same key be "
                "for the same score?"
            ),
            answer=k + m - q,
            tolerance=0.0,
            reason=f"The rotations leave only the difference of the angles: the distance {q} - {k} = {q - k}, "
            f"so {m} - {q - k}.",
            experiment=f"RotaryEmbedding on one query and one key, tried at every position up to {m}",
            mistakes=(
                Mistake(
                    value=k,
                    why=f"Then the distance would be {m - k} instead of {q - k}; absolute positions do not count.",
                ),
                Mistake(value=k - (m - q), why=f"The key has to move the same way as the query: by +{m - q}."),
                Mistake(value=m, why=f"There the distance would be 0, not {q - k}."),
            ),
        )

    def demonstrate(self) -> Answer:
        rope = RotaryEmbedding(16, MAX_SEQ_LEN)
        torch.manual_seed(0)
        q, k = torch.randn(2, 1, 16, dtype=torch.float64)
        right = rope(q, torch.tensor([self.query])) @ rope(k, torch.tensor([self.key])).T
        places = torch.arange(self.moved + 1)
        scores = rope(q, torch.tensor([self.moved])) @ rope(k.expand(len(places), 16), places).T
        return int((scores - right).abs().argmin())


@dataclass(frozen=True)
class RotationAngle(Problem):
    """p * theta^(-2i / head_dim)."""

    position: int
    pair: int
    head_dim: int
    theta: float
    topic = "attention"

    @classmethod
    def draw(cls, rng: Random) -> "RotationAngle":
        head_dim = rng.choice([8, 12, 16])
        return cls(rng.randint(3, 9), rng.randint(2, 3), head_dim, rng.choice([100.0, 1000.0, 10000.0]))

    def ask(self) -> Question:
        p, i, d, theta = self.position, self.pair, self.head_dim, self.theta
        return Question(
            text=(
                f"head_dim = {d}, rope_theta = {theta:g}. By what angle, in radians, are features {2 * i} and "
                f"{2 * i + 1} of the token at position {p} rotated?"
            ),
            answer=p * theta ** (-2 * i / d),
            reason=f"These two are pair i = {i}: {p} * {theta:g}^(-{2 * i}/{d}).",
            experiment="RotaryEmbedding on (1, 0) in that pair, and the angle of what comes out",
            mistakes=(
                Mistake(
                    value=p * theta ** (-i / d),
                    why=f"The exponent is -2i/head_dim = -{2 * i}/{d}: pairs share the range of frequencies "
                    f"among {d // 2}.",
                ),
                Mistake(
                    value=p * theta ** (-2 * i / (d // 2)),
                    why=f"The exponent is divided by head_dim = {d}, not by the number of pairs.",
                ),
                Mistake(
                    value=theta ** (-2 * i / d),
                    why=f"That is the angle of one step; the token is {p} steps from the start.",
                ),
                Mistake(value=float(p), why="Only the first pair turns by one radian a token."),
            ),
        )

    def demonstrate(self) -> Answer:
        rope = RotaryEmbedding(self.head_dim, MAX_SEQ_LEN, self.theta)
        x = torch.zeros(1, self.head_dim, dtype=torch.float64)
        x[0, 2 * self.pair] = 1
        y = rope(x, torch.tensor([self.position]))[0]
        return float(torch.atan2(y[2 * self.pair + 1], y[2 * self.pair])) % (2 * math.pi)


@dataclass(frozen=True)
class ScoreSpread(Problem):
    """Unscaled scores have standard deviation sqrt(head_dim)."""

    head_dim: int
    topic = "attention"

    @classmethod
    def draw(cls, rng: Random) -> "ScoreSpread":
        return cls(2 ** rng.randint(3, 9))

    def ask(self) -> Question:
        d = self.head_dim
        return Question(
            text=(
                f"Queries and keys have {d} independent features of mean 0 and variance 1. What is the standard "
                "deviation of q . k, before it is scaled?"
            ),
            answer=math.sqrt(d),
            reason=f"{d} products of variance 1 add up to variance {d}; dividing by sqrt({d}) brings scores "
            "back to 1, so that softmax stays soft.",
            experiment="Queries of +1 and -1 against all rows of a Hadamard matrix; the root mean square of the scores",
            mistakes=(
                Mistake(value=float(d), why=f"{d} is the variance; the standard deviation is its root."),
                Mistake(value=1.0, why="That is what it is after the scaling."),
                Mistake(
                    value=1 / math.sqrt(d), why="That is the factor by which scores are scaled, to undo the spread."
                ),
            ),
        )

    def demonstrate(self) -> Answer:
        keys = torch.ones(1, 1, dtype=torch.float64)
        while len(keys) < self.head_dim:
            keys = torch.cat([torch.cat([keys, keys], 1), torch.cat([keys, -keys], 1)])
        q = torch.where(torch.arange(self.head_dim) % 3 == 0, -1.0, 1.0).double()
        return float((keys @ q).square().mean().sqrt())


@dataclass(frozen=True)
class WhoNotices(Problem):
    """How many outputs change if one token changes."""

    seq: int
    changed: int
    causal: bool
    topic = "attention"

    @classmethod
    def draw(cls, rng: Random) -> "WhoNotices":
        seq = rng.randint(10, 20)
        places = [j for j in range(2, seq - 3) if j + 1 not in (seq - j, seq - j - 1)]  # no two mistakes agree
        return cls(seq, rng.choice(places), rng.choice([True, False]))

    def ask(self) -> Question:
        s, j = self.seq, self.changed
        right, other = (s - j, s) if self.causal else (s, s - j)
        causal = "causal" if self.causal else "not causal"
        seen = f"the tokens from {j} on attend to it" if self.causal else f"all {s} tokens attend to it"
        return Question(
            text=(
                f"{s} tokens, numbered from 0, go through one block that is {causal}. Token {j} is replaced by "
                "another. How many of the outputs change?"
            ),
            answer=right,
            tolerance=0.0,
            reason=f"In a block that is {causal}, {seen}, itself included: {right}.",
            experiment="A TransformerBlock on both sequences; outputs that differ",
            mistakes=(
                Mistake(
                    value=other, why=f"That would be so in a block that is {'not causal' if self.causal else 'causal'}."
                ),
                Mistake(
                    value=1, why="That is the norms and the feed-forward alone; attention carries the change to others."
                ),
                Mistake(value=s - j - 1, why=f"Token {j} itself changes too."),
                Mistake(
                    value=j + 1,
                    why=f"Those up to token {j}: the wrong side; a causal token attends to what comes before it.",
                ),
                Mistake(value=s - 1, why=f"Token {j} itself changes too, also through its residual."),
            ),
        )

    def demonstrate(self) -> Answer:
        torch.manual_seed(0)
        block = TransformerBlock(16, 2, 32, causal=self.causal)
        x = torch.randn(1, self.seq, 16)
        other = x.clone()
        other[0, self.changed] += 1
        with torch.no_grad():
            return int(((block(x) - block(other)).abs().amax(-1) > 1e-6).sum())
