"""Questions about cost: matrix products, growth with the sequence, bytes of the cache."""

from dataclasses import dataclass
from random import Random

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...blocks.transformer import TransformerBlock
from ...config import ModelConfig
from ...models.lm import TransformerLM
from ...ops import backends
from ...ops.attention import scaled_dot_product_attention
from .problem import Answer, Mistake, Problem, Question


@dataclass(frozen=True)
class ForwardFlops(Problem):
    """2 s (4 d^2 + 3 d d_ff) + 4 s^2 d."""

    d_model: int
    d_ff: int
    seq: int
    topic = "cost"

    @classmethod
    def draw(cls, rng: Random) -> "ForwardFlops":
        d_model = rng.choice([16, 24, 32, 48])
        return cls(d_model, d_model * rng.choice([2, 3]), rng.choice([20, 40, 60, 100]))

    def ask(self) -> Question:
        d, f, s = self.d_model, self.d_ff, self.seq
        linear, scores = 2 * s * (4 * d * d + 3 * d * f), 4 * s * s * d
        return Question(
            text=(
                f"d_model = {d}, d_ff = {f}, one sequence of {s} tokens, not causal. How many floating point "
                "operations are the matrix products of one block's forward pass (a multiplication and an addition are "
                "two)?"
            ),
            answer=linear + scores,
            reason=(
                f"Every weight of a matrix is used once a token, for two operations: 2 * {s} * (4 * {d}^2 + 3 * {d} * "
                f"{f}) = {linear:,}. Scores and the weighted sum of values: 2 * {s}^2 * {d} each, {scores:,} together."
            ),
            experiment="A TransformerBlock under torch's FlopCounterMode",
            mistakes=(
                Mistake(value=linear, why=f"Scores and the weighted sum of values are missing: {scores:,}."),
                Mistake(value=(linear + scores) // 2, why="A multiplication and an addition are two operations."),
                Mistake(
                    value=linear + scores // 2,
                    why="Attention has two products of tokens with tokens: the scores, and the weighted sum of values.",
                ),
                Mistake(value=2 * s * (4 * d * d + 2 * d * f) + scores, why="SwiGLU has three matrices."),
                Mistake(
                    value=2 * s * (3 * d * d + 3 * d * f) + scores,
                    why="Attention has four matrices: the output projection is missing.",
                ),
            ),
            tolerance=0.005,
        )

    def demonstrate(self) -> Answer:
        block = TransformerBlock(self.d_model, 2, self.d_ff)
        return _flops(lambda: block(torch.zeros(1, self.seq, self.d_model)))


@dataclass(frozen=True)
class LongerSequence(Problem):
    """Scores grow with the square of the sequence."""

    seq: int
    factor: int
    topic = "cost"

    @classmethod
    def draw(cls, rng: Random) -> "LongerSequence":
        return cls(rng.choice([16, 32, 48]), rng.randint(3, 9))

    def ask(self) -> Question:
        s, k = self.seq, self.factor
        return Question(
            text=(
                f"A sequence grows from {s} to {k * s} tokens. By what factor do the operations of softmax(q k^T) v "
                "grow, the projections left out?"
            ),
            answer=k * k,
            tolerance=0.0,
            reason=f"{k} times as many queries, each with {k} times as many keys.",
            experiment=f"scaled_dot_product_attention with {s} and with {k * s} tokens under torch's "
            "FlopCounterMode; the ratio",
            mistakes=(
                Mistake(
                    value=k,
                    why=f"So do the projections; but here each of the {k} times as many queries also meets {k} "
                    "times as many keys.",
                ),
                Mistake(
                    value=2 * k,
                    why=f"Queries and keys both grow by {k}, and every query meets every key: the factors multiply.",
                ),
                Mistake(
                    value=k**3, why="Each score is a product over head_dim, which does not grow with the sequence."
                ),
            ),
        )

    def demonstrate(self) -> Answer:
        short, long = (torch.zeros(1, 2, length, 8) for length in (self.seq, self.factor * self.seq))
        counts = [_flops(lambda x=x: scaled_dot_product_attention(x, x, x)) for x in (short, long)]
        return counts[1] // counts[0] if counts[1] % counts[0] == 0 else counts[1] / counts[0]


@dataclass(frozen=True)
class CacheBytes(Problem):
    """2 x layers x kv heads x head_dim x tokens x bytes."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int
    topic = "cost"

    @classmethod
    def draw(cls, rng: Random) -> "CacheBytes":
        kv_heads = rng.choice([1, 2, 3])
        heads = kv_heads * rng.choice([3, 4])
        return cls(rng.randint(5, 7), heads, kv_heads, rng.choice([8, 16]), rng.choice([100, 200, 300]))

    def ask(self) -> Question:
        n, h, kv, d, s = self.layers, self.heads, self.kv_heads, self.head_dim, self.tokens
        right = 2 * n * kv * d * s * 2
        return Question(
            text=(
                f"A model has {n} layers, {h} query heads and {kv} key-value head{'s' if kv > 1 else ''} of head_dim "
                f"{d}. How many bytes do the keys and values of {s} tokens take in bfloat16?"
            ),
            answer=right,
            tolerance=0.0,
            reason=(
                f"Keys and values (2) of {n} layers, {kv} heads, {d} features, {s} tokens, 2 bytes each: 2 * {n} * "
                f"{kv} * {d} * {s} * 2."
            ),
            experiment="The tensors in a TransformerLM's cache, counted",
            mistakes=(
                Mistake(
                    value=right // 2, why="There are keys and values, and bfloat16 has two bytes: two factors of 2."
                ),
                Mistake(
                    value=right // kv * h,
                    why=f"Only the {kv} key-value heads are kept; the {h} query heads share them.",
                ),
                Mistake(value=right * 2, why="That is float32; bfloat16 has two bytes."),
                Mistake(value=right // n, why=f"That is one layer; each of the {n} keeps its own."),
            ),
        )

    def demonstrate(self) -> Answer:
        config = ModelConfig(
            vocab_size=10,
            d_model=self.heads * self.head_dim,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            d_ff=8,
            max_seq_len=self.tokens,
        )
        cache = TransformerLM(config).make_cache(batch_size=1, max_seq_len=self.tokens, dtype=torch.bfloat16)
        held = [tensor[:, :, : self.tokens] for i in range(self.layers) for tensor in (cache[i].keys, cache[i].values)]
        return sum(tensor.nbytes for tensor in held)


def _flops(call: object) -> int:
    """The operations of a call's matrix products."""
    assert callable(call)
    with backends.use_backend("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()
