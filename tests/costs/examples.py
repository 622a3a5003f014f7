"""Models of odd shapes, with and without each switch."""

import random
from collections.abc import Iterator
from typing import Any

from prenorm import ModelConfig

from ..equality.cases import FAMILIES as FAMILIES


def odd_configs(count: int, *, dropout: bool = False) -> Iterator[ModelConfig]:
    """The same small configs on every run."""
    draw = random.Random(0)
    for _ in range(count):
        num_kv_heads = draw.choice([1, 2, 3])
        yield ModelConfig(
            vocab_size=draw.choice([7, 101]),
            d_model=draw.choice([4, 30, 65]),
            num_layers=draw.choice([1, 2, 5]),
            num_heads=num_kv_heads * draw.choice([1, 2, 3]),
            num_kv_heads=num_kv_heads,
            head_dim=draw.choice([4, 10, 16, 48]),
            d_ff=draw.choice([3, 40, 200]),
            max_seq_len=400,
            window=draw.choice([None, None, 1, 7, 500]),
            qk_norm=draw.random() < 0.4,
            qkv_bias=draw.random() < 0.4,
            o_bias=draw.random() < 0.4,
            tie_embeddings=draw.random() < 0.5,
            dropout=draw.choice([0.0, 0.1]) if dropout else 0.0,
        )


def family_config(name: str, **options: Any) -> ModelConfig:
    """A small model of two layers with the record of a family in the equality grid, where every switch occurs."""
    sizes = {
        "vocab_size": 29,
        "d_model": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "d_ff": 24,
    }
    return ModelConfig(**{**sizes, "max_seq_len": 400, **FAMILIES[name], **options})
