"""Toy models with the interface that decoding needs, without a network."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from prenorm.config import ModelConfig
from prenorm.generation import decoding
from prenorm.generation.speculation import Speculation
from prenorm.layers.timeline import Timeline
from prenorm.ops import ranges


class Histories(list[list[int]]):
    """The tokens of each row: a cache of exactly the requested size, with rewind."""

    def __init__(self, batch_size: int, room: int, most: int) -> None:
        super().__init__([] for _ in range(batch_size))
        self.room, self.most = room, most
        self.others = 0  # what a row holds beside tokens

    def rewind(self, counts: Tensor, *, longest: int) -> None:
        for history, count in zip(self, counts.tolist(), strict=True):
            assert 0 <= count <= min(self.most, len(history))
            del history[len(history) - count :]
        assert longest + self.others >= max(map(len, self))


class HistoryModel:
    """Logits that are a fixed random function of all tokens of a row so far, which the cache keeps as lists.

    Another salt is another function. Where a row has no token, there are logits of NaN, which nobody may look at.
    """

    vocab_size: int = 11
    max_seq_len: int = 64
    eos_token_ids: tuple[int, ...] = ()

    def __init__(self, salt: int = 0, vocab_size: int = 11) -> None:
        self.salt, self.vocab_size = salt, vocab_size
        self.calls: list[tuple[Tensor, Tensor | None]] = []
        self.caches: list[tuple[int, int]] = []
        self._known: dict[tuple[int, ...], Tensor] = {}

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(self.vocab_size, d_model=2, num_layers=1, num_heads=1, max_seq_len=self.max_seq_len)

    def make_cache(self, batch_size: int, max_seq_len: int, *, rewind: int = 0) -> Histories:
        self.caches.append((batch_size, max_seq_len))
        return Histories(batch_size, max_seq_len, rewind)

    def next_logits(self, token_ids: Tensor, *, segment_ids: Tensor | None, cache: list[list[int]]) -> Tensor:
        places = self.all_logits(token_ids, segment_ids=segment_ids, cache=cache)
        if segment_ids is None:
            return places[:, -1]
        return places[torch.arange(len(places)), (segment_ids >= 0).sum(-1) - 1]

    def all_logits(self, token_ids: Tensor, *, segment_ids: Tensor | None, cache: list[list[int]]) -> Tensor:
        self.calls.append((token_ids, segment_ids))
        real = torch.ones_like(token_ids, dtype=torch.bool) if segment_ids is None else segment_ids == 0
        assert not token_ids[~real].any()
        if isinstance(cache, Histories):
            assert all(len(row) + new <= cache.room for row, new in zip(cache, real.sum(-1).tolist(), strict=True))
        return torch.stack([self._row(*row) for row in zip(cache, token_ids.tolist(), real.tolist(), strict=True)])

    def _row(self, history: list[int], token_ids: list[int], real: list[bool]) -> Tensor:
        places = []
        for token, is_real in zip(token_ids, real, strict=True):
            history.extend([token] if is_real else [])
            places.append(self.logits(history) if is_real else torch.full((self.vocab_size,), torch.nan))
        return torch.stack(places)

    def logits(self, history: list[int]) -> Tensor:
        key = tuple(history)
        if key not in self._known:
            generator = torch.Generator().manual_seed(zlib.crc32(bytes(history), self.salt))
            self._known[key] = 3 * torch.randn(self.vocab_size, generator=generator)
        return self._known[key]

    def stream(self, prompts: Any, **options: Any) -> Iterator[Any]:
        return decoding.stream(self.next_logits, self.make_cache, prompts, **self._options(**options))

    def generate(self, prompts: Any, **options: Any) -> Any:
        return decoding.generate(self.next_logits, self.make_cache, prompts, **self._options(**options))

    def _options(self, draft: Any = None, draft_tokens: int = 4, **options: Any) -> dict[str, Any]:
        if draft is not None:
            options["speculation"] = Speculation(
                all_logits=self.all_logits,
                draft_logits=draft.next_logits,
                make_draft_cache=draft.make_cache,
                draft_vocab_size=draft.vocab_size,
                draft_max_seq_len=draft.max_seq_len,
                draft_tokens=draft_tokens,
            )
        return {"vocab_size": self.vocab_size, "max_seq_len": self.max_seq_len, **options}


class ScriptedModel(HistoryModel):
    """Row i generates scripts[i], token by token, and then 0 forever."""

    def __init__(self, scripts: Sequence[Sequence[int]], vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        self.scripts = scripts
        self.max_seq_len = 100_000

    def next_logits(self, token_ids: Tensor, *, segment_ids: Tensor | None, cache: Any) -> Tensor:
        said = len(self.calls)
        self.calls.append((token_ids, segment_ids))
        tokens = [script[said] if said < len(script) else 0 for script in self.scripts]
        return torch.nn.functional.one_hot(torch.tensor(tokens), self.vocab_size) * 1e4


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make checks on values behave as on a GPU, where reading a value would wait for the device."""
    monkeypatch.setattr(ranges, "host_readable", lambda values: False)
    monkeypatch.setattr(Timeline, "_check_documents", lambda *args: None)


@pytest.fixture
def toy() -> HistoryModel:
    return HistoryModel()


@pytest.fixture(scope="session")
def make_toy() -> type[HistoryModel]:
    return HistoryModel


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedModel]:
    return ScriptedModel
