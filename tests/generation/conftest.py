"""Toy models: what decoding sees, without a network."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from prenorm.config import ModelConfig
from prenorm.generation import decoding


class HistoryModel:
    """Logits that are a fixed random function of all tokens of a row so far, which the cache keeps as lists."""

    vocab_size: int = 11
    max_seq_len: int = 64
    eos_token_ids: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor | None]] = []
        self.caches: list[tuple[int, int]] = []

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(self.vocab_size, d_model=2, num_layers=1, num_heads=1, max_seq_len=self.max_seq_len)

    def make_cache(self, batch_size: int, max_seq_len: int) -> list[list[int]]:
        self.caches.append((batch_size, max_seq_len))
        return [[] for _ in range(batch_size)]

    def next_logits(self, token_ids: Tensor, *, segment_ids: Tensor | None, cache: list[list[int]]) -> Tensor:
        self.calls.append((token_ids, segment_ids))
        real = torch.ones_like(token_ids, dtype=torch.bool) if segment_ids is None else segment_ids == 0
        for history, row, is_real in zip(cache, token_ids, real, strict=True):
            history.extend(row[is_real].tolist())
        return torch.stack([self.logits(history) for history in cache])

    def logits(self, history: list[int]) -> Tensor:
        seed = zlib.crc32(bytes(history))
        return 3 * torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(seed))

    def stream(self, prompts: Any, **options: Any) -> Iterator[list[int | None]]:
        return decoding.stream(self.next_logits, self.make_cache, prompts, **self._sizes(options))

    def generate(self, prompts: Any, **options: Any) -> list[list[int]]:
        return decoding.generate(self.next_logits, self.make_cache, prompts, **self._sizes(options))

    def _sizes(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "max_seq_len": self.max_seq_len, **options}


class ScriptedModel(HistoryModel):
    """Row i says scripts[i], token by token, and then 0 for ever."""

    def __init__(self, scripts: Sequence[Sequence[int]], vocab_size: int) -> None:
        super().__init__()
        self.scripts = scripts
        self.vocab_size = vocab_size
        self.max_seq_len = 100_000

    def next_logits(self, token_ids: Tensor, *, segment_ids: Tensor | None, cache: Any) -> Tensor:
        said = len(self.calls)
        self.calls.append((token_ids, segment_ids))
        tokens = [script[said] if said < len(script) else 0 for script in self.scripts]
        return torch.nn.functional.one_hot(torch.tensor(tokens), self.vocab_size) * 1e4


@pytest.fixture
def toy() -> HistoryModel:
    return HistoryModel()


@pytest.fixture(scope="session")
def make_toy() -> type[HistoryModel]:
    return HistoryModel


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedModel]:
    return ScriptedModel
