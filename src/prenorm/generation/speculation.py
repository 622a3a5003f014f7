"""Speculative decoding: a small model drafts several tokens, and the large model verifies them all in one call."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ..errors import ConfigError
from ..validation import as_size
from .logits import AllLogits, NextLogits
from .padding import pad
from .replies import NO_DRAFT, NOTHING, Batch, Token, fetch
from .sampling import ONE, draw

# The random numbers for each position of a reply: one to draw from a model's own distribution (the draft's token, or
# the model's where nothing was drafted, so that a draft equal to the model gives the same tokens as without a draft),
# one to accept or reject, and one for the token that replaces a rejected one. Tokens depend only on seed, prompt and
# position: numbers used after a rejected token had no effect, and are used again.
SUBSTREAMS = 3

DRAFT_TOKENS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """A draft model, and a call of the large model that gives logits at several positions at once.

    Whatever the draft, replies have the same distribution as without it, and greedy replies the same tokens; the more
    often the draft is right, the faster they are. Raises ConfigError.
    Sources: Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
    """

    all_logits: AllLogits
    """The model's logits at every position of a call."""

    draft_logits: NextLogits
    """The draft's logits after each row's last token."""

    make_draft_cache: Callable[..., Any]
    """make_draft_cache(batch_size=, max_seq_len=, rewind=) makes the draft's cache; the model's has the same arguments.
    rewind: the most tokens that `cache.rewind(counts)` will take back in a round."""

    draft_vocab_size: int
    draft_max_seq_len: int

    draft_tokens: int = DRAFT_TOKENS
    """The most tokens drafted per round."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "draft_tokens", as_size("draft_tokens", self.draft_tokens))

    def check(self, vocab_size: int, cache: Any) -> None:
        """Raise ConfigError unless the draft has this vocabulary, and the caller gave no cache."""
        if self.draft_vocab_size != vocab_size:
            raise ConfigError(
                f"a draft must have the model's vocab_size, but it has {self.draft_vocab_size} and the model "
                f"{vocab_size}; use a smaller model with the same tokenizer."
            )
        if cache is not None:
            raise ConfigError(
                "a draft must read everything that the model has read, but the given cache holds earlier tokens; leave "
                "out the cache or the draft."
            )


def speculative_rounds(
    batch: Batch, next_logits: NextLogits, make_cache: Callable[..., Any], models: Speculation
) -> Iterator[list[list[Token]]]:
    """Rounds of one to draft_tokens + 1 tokens per row, as many as the model accepts, until all replies have ended.

    Rows advance independently. In each round a row drafts up to draft_tokens tokens, but the last token of a reply is
    left to the model, so that no cache needs more room than without a draft. A row that drafts fewer tokens than
    others, or has ended, is padded.
    """
    rounds = _Rounds(batch, next_logits, make_cache, models)
    yield rounds.first()
    while not all(reply.ended for reply in batch.replies):
        yield rounds.next()


class _Rounds:
    """The state carried from one round to the next, all of it on the device.

    Both caches hold a row's tokens except the last; where all were accepted, the draft's cache also lacks the one
    before it. Inference mode is entered per round: around a yield it would also apply to the consumer's code.
    """

    def __init__(
        self, batch: Batch, next_logits: NextLogits, make_cache: Callable[..., Any], models: Speculation
    ) -> None:
        self._batch, self._next_logits, self._models = batch, next_logits, models
        sizes = {"batch_size": len(batch.rows), "max_seq_len": batch.room, "rewind": models.draft_tokens}
        self._cache, self._draft_cache = make_cache(**sizes), models.make_draft_cache(**sizes)
        self._uniforms = batch.uniforms.mT.contiguous()  # substreams batch steps
        self._held = [len(row) for row in batch.rows]  # tokens in the model's cache; at most as many in the draft's
        self._drafting = [0] * len(batch.rows)  # how many tokens each row drafts in this round; -1: ended

    @torch.inference_mode()
    def first(self) -> list[list[Token]]:
        """Prefill both models, and choose one token per row, as without a draft."""
        batch = self._batch
        token_ids, segment_ids = pad(batch.rows, batch.device)
        logits = self._next_logits(token_ids, segment_ids=segment_ids, cache=self._cache)
        seen = batch.seen(token_ids, segment_ids)
        tokens = batch.sampling.choose(logits, self._uniforms[0, :, 0], seen)[:, None]
        fetched = fetch(tokens, logits[:, None] if batch.logprobs else None)
        self._models.draft_logits(token_ids, segment_ids=segment_ids, cache=self._draft_cache)
        self._live = torch.ones_like(tokens[:, 0], dtype=torch.bool)
        self._decoded = torch.zeros_like(tokens[:, 0])
        self._go_on(tokens, accepted=self._decoded, drafted=self._decoded, seen=None if seen is None else seen[:, None])
        return fetched

    @torch.inference_mode()
    def next(self) -> list[list[Token]]:
        """Draft, verify with the model, and take back rejected tokens."""
        batch = self._batch
        longest, counts = self._plan()
        offset = torch.arange(longest + 1, device=counts.device)
        steps = (self._decoded[:, None] + offset).clamp(max=self._uniforms.shape[-1] - 1)
        uniforms = self._uniforms.gather(-1, steps.expand(SUBSTREAMS, -1, -1))

        tokens, draft, seen = self._draft(longest, counts, uniforms[0])
        fed = torch.cat((self._last, tokens[:, :-1].clamp(min=0)), dim=1)
        is_token = None if min(self._drafting) == longest else offset <= counts[:, None]
        logits = self._ask(self._models.all_logits, fed, is_token, self._cache)
        model = batch.sampling.fixed_point_probs(logits, seen)
        tokens, accepted = judge(model, draft, tokens, counts, uniforms)

        fetched = fetch(tokens, logits if batch.logprobs else None)
        for row, new in enumerate(fetched):
            if self._drafting[row] >= 0:
                self._held[row] += sum(token != NOTHING for token, _ in new)
        self._cache.rewind((counts - accepted).clamp(min=0).to(batch.device), longest=max(self._held))
        self._draft_cache.rewind((counts - 1 - accepted).clamp(min=0).to(batch.device), longest=max(self._held))
        self._go_on(tokens, accepted, counts, seen)
        return fetched

    def _plan(self) -> tuple[int, Tensor]:
        """The number of tokens in this round's longest draft, and in each row's (-1: the row has ended)."""
        most, ended = self._models.draft_tokens, [count < 0 for count in self._drafting]
        self._drafting = [min(most, reply.missing - 1) for reply in self._batch.replies]
        if ended != (ended := [count < 0 for count in self._drafting]):
            self._live = ~torch.tensor(ended, device=self._live.device)
        counts = (self._uniforms.shape[-1] - 1 - self._decoded).clamp(max=most)  # recomputed on the device, not sent
        return max(self._drafting), counts.where(self._live, -1)

    def _draft(self, longest: int, counts: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The draft's tokens (batch, longest + 1), their distributions, and the tokens seen before each of them.

        The last column belongs to the model: it has no drafted token, and its probabilities are 0.
        """
        batch, device = self._batch, counts.device
        tokens = torch.full((len(counts), longest + 1), NOTHING, device=device)
        probs = torch.zeros((*tokens.shape, batch.vocab_size), dtype=torch.int64, device=device)
        seen = None if self._seen is None else self._seen[:, None].repeat(1, longest + 1, 1)
        fed = self._unread
        is_token: Tensor | None = self._is_unread & (counts[:, None] > 0)
        for i in range(longest):
            logits = self._ask(self._models.draft_logits, fed, is_token, self._draft_cache)
            probs[:, i] = batch.sampling.fixed_point_probs(logits, None if seen is None else seen[:, i])
            tokens[:, i] = draw(probs[:, i], uniforms[:, i])
            fed = tokens[:, i, None].clamp(min=0)
            is_token = None if min(self._drafting) > i + 1 else counts[:, None] > i + 1
            if seen is not None:
                seen[:, i + 1 :].scatter_(2, fed[:, None].expand(-1, longest - i, -1), True)
        return tokens, probs, seen

    def _ask(self, logits_of: NextLogits | AllLogits, token_ids: Tensor, is_token: Tensor | None, cache: Any) -> Tensor:
        """The logits for these tokens. is_token: False for padding; None: no padding."""
        device, segment_ids = self._batch.device, None
        if is_token is not None:
            token_ids, segment_ids = token_ids.where(is_token, 0), torch.where(is_token, 0, -1).to(device)
        return logits_of(token_ids.to(device), segment_ids=segment_ids, cache=cache).to(self._uniforms.device)

    def _go_on(self, tokens: Tensor, accepted: Tensor, drafted: Tensor, seen: Tensor | None) -> None:
        """Update each row's state after a round: its last token, the tokens the draft has not read, the tokens seen."""
        self._last = tokens.gather(1, accepted[:, None]).clamp(min=0)  # any value in a row that has ended
        before = tokens.gather(1, (accepted[:, None] - 1).clamp(min=0))
        behind = ((accepted == drafted) & (drafted > 0))[:, None]
        self._unread = torch.cat((before.where(behind, self._last), self._last), dim=1)
        self._is_unread = torch.cat((torch.ones_like(behind), behind), dim=1)
        self._decoded = self._decoded + accepted + 1
        row = torch.arange(len(tokens), device=tokens.device)
        self._seen = None if seen is None else seen[row, accepted].scatter_(1, self._last, True)


def judge(
    model: Int64[Tensor, "batch new vocab"],
    draft: Int64[Tensor, "batch new vocab"],
    drafted: Int64[Tensor, "batch new"],
    counts: Int64[Tensor, " batch"],
    uniforms: Float64[Tensor, "substreams batch new"],
) -> tuple[Int64[Tensor, "batch new"], Int64[Tensor, " batch"]]:
    """Each row's new tokens, followed by NOTHING, and how many of them are the draft's.

    A drafted token x is accepted with probability min(1, p(x) / q(x)). The first rejected token and all after it are
    replaced by one token from max(p - q, 0), normalised; if all counts[i] are accepted, one more is drawn from p.
    model, draft: p and q at each position, as from `Sampling.fixed_point_probs`; drafted tokens were drawn from q.
    The result is -1 where no token can be chosen from p, and NO_DRAFT where none could from q. Sources: see
    `Speculation`.
    """
    drawing, accepting, replacing = uniforms
    offset = torch.arange(drafted.shape[1], device=drafted.device)
    ids = drafted.clamp(min=0)[..., None]
    p, q = (probs.gather(-1, ids)[..., 0].double() / probs.sum(-1).clamp(min=1) for probs in (model, draft))
    agreed = (offset < counts[:, None]) & (drafted >= 0) & (accepting * q < p)
    accepted = agreed.long().cumprod(-1).sum(-1)

    row, rejected = torch.arange(len(drafted), device=drafted.device), accepted < counts
    p, q = _normalised(model[row, accepted]), _normalised(draft[row, accepted])
    rest = torch.where(rejected[:, None], (p - q).clamp(min=0), p)
    rest = rest.where(rest.sum(-1, keepdim=True) > 0, p)  # p and q were equal up to rounding
    chosen = draw(rest, replacing[row, accepted].where(rejected, drawing[row, accepted]))
    chosen = chosen.where(~rejected | (drafted[row, accepted] >= 0), NO_DRAFT)
    tokens = drafted.where(offset < accepted[:, None], NOTHING)
    return tokens.scatter(1, accepted[:, None], chosen[:, None]), accepted


def _normalised(probs: Tensor) -> Tensor:
    """The same distribution with a sum of 2^52, up to rounding, so that two can be subtracted."""
    return (probs.double() / probs.sum(-1, keepdim=True).clamp(min=1) * ONE).long()
