"""Speculative decoding: a small model drafts several tokens, and the large one reads them all in one call."""

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
from .sampling import WHOLE, draw

# The random numbers of a place in a reply: one for what is drawn from a model's own distribution (the draft's token,
# or the model's where nothing was drafted: so a draft that equals the model gives the tokens that come without one),
# one to accept by, one for the token in place of a rejected one. Tokens are a function of seed, prompt and place alone:
# a number that was used for a token behind a rejected one has left no trace, and is used again.
LANES = 3

DRAFT_TOKENS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """A draft, and how to ask the model about several places at once.

    Whatever the draft, replies have the distribution that they have without it, and greedy ones are the same tokens;
    a draft that is often right makes them faster. Raises ConfigError.
    Sources: Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
    """

    all_logits: AllLogits
    """The model's logits at every place of a call."""

    draft_logits: NextLogits
    """The draft's logits after each row's last token."""

    make_draft_cache: Callable[..., Any]
    """make_draft_cache(batch_size=, max_seq_len=, rewind=): what the draft remembers; the model's is made likewise.
    rewind: the most tokens that the cache's `rewind(counts)` will be asked to take back in a round."""

    draft_vocab_size: int
    draft_max_seq_len: int

    draft_tokens: int = DRAFT_TOKENS
    """The most tokens that are drafted at a time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "draft_tokens", as_size("draft_tokens", self.draft_tokens))

    def check(self, vocab_size: int, cache: Any) -> None:
        """Raise ConfigError unless this draft can serve a model with this vocabulary, and no cache of the caller."""
        if self.draft_vocab_size != vocab_size:
            raise ConfigError(
                f"a draft must have the model's vocab_size, but it has {self.draft_vocab_size} and the model "
                f"{vocab_size}; a draft is a smaller model with the same tokenizer."
            )
        if cache is not None:
            raise ConfigError("a draft has to read all that the model has read; leave out the cache, or the draft.")


def speculative_rounds(
    batch: Batch, next_logits: NextLogits, make_cache: Callable[..., Any], models: Speculation
) -> Iterator[list[list[Token]]]:
    """Rounds of one to draft_tokens + 1 tokens a row, as many as the model agrees with, until all replies have ended.

    Each row goes on from where it is, whatever the others do: in a round it drafts up to draft_tokens tokens, but
    leaves the last of a reply to the model, so that no cache needs more room than without a draft. A row that drafts
    fewer than others, or has ended, is padded.
    """
    rounds = _Rounds(batch, next_logits, make_cache, models)
    yield rounds.first()
    while not all(reply.ended for reply in batch.replies):
        yield rounds.next()


class _Rounds:
    """What one round leaves to the next, all of it on the device.

    Both caches hold a row's tokens but the last; the draft's not the one before it either, where all were accepted.
    A round at a time is in inference mode: around a yield it would hold for the consumer too.
    """

    def __init__(
        self, batch: Batch, next_logits: NextLogits, make_cache: Callable[..., Any], models: Speculation
    ) -> None:
        self._batch, self._next_logits, self._models = batch, next_logits, models
        sizes = {"batch_size": len(batch.rows), "max_seq_len": batch.room, "rewind": models.draft_tokens}
        self._cache, self._draft_cache = make_cache(**sizes), models.make_draft_cache(**sizes)
        self._uniforms = batch.uniforms.mT.contiguous()  # lanes batch places
        self._held = [len(row) for row in batch.rows]  # tokens in the model's cache; the draft's has no more
        self._drafting = [0] * len(batch.rows)  # how many tokens each row drafts in this round; -1: it has ended

    @torch.inference_mode()
    def first(self) -> list[list[Token]]:
        """Read the prompts, and choose one token after each, as without a draft."""
        batch = self._batch
        token_ids, segment_ids = pad(batch.rows, batch.device)
        logits = self._next_logits(token_ids, segment_ids=segment_ids, cache=self._cache)
        seen = batch.seen(token_ids, segment_ids)
        tokens = batch.sampling.choose(logits, self._uniforms[0, :, 0], seen)[:, None]
        fetched = fetch(tokens, logits[:, None] if batch.logprobs else None)
        self._models.draft_logits(token_ids, segment_ids=segment_ids, cache=self._draft_cache)
        self._live = torch.ones_like(tokens[:, 0], dtype=torch.bool)
        self._written = torch.zeros_like(tokens[:, 0])
        self._go_on(tokens, accepted=self._written, drafted=self._written, seen=None if seen is None else seen[:, None])
        return fetched

    @torch.inference_mode()
    def next(self) -> list[list[Token]]:
        """Draft, let the model judge, and take back what it rejects."""
        batch = self._batch
        longest, counts = self._plan()
        place = torch.arange(longest + 1, device=counts.device)
        places = (self._written[:, None] + place).clamp(max=self._uniforms.shape[-1] - 1)
        uniforms = self._uniforms.gather(-1, places.expand(LANES, -1, -1))

        tokens, draft, seen = self._draft(longest, counts, uniforms[0])
        fed = torch.cat((self._last, tokens[:, :-1].clamp(min=0)), dim=1)
        real = None if min(self._drafting) == longest else place <= counts[:, None]
        logits = self._ask(self._models.all_logits, fed, real, self._cache)
        model = batch.sampling.shares(logits, seen)
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
        """How many tokens the longest draft of this round has, and that of each row (-1: the row has ended)."""
        most, ended = self._models.draft_tokens, [count < 0 for count in self._drafting]
        self._drafting = [min(most, reply.missing - 1) for reply in self._batch.replies]
        if ended != (ended := [count < 0 for count in self._drafting]):
            self._live = ~torch.tensor(ended, device=self._live.device)
        counts = (self._uniforms.shape[-1] - 1 - self._written).clamp(max=most)  # as here, but without sending it
        return max(self._drafting), counts.where(self._live, -1)

    def _draft(self, longest: int, counts: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The draft's tokens (batch, longest + 1), its distributions, and what was seen at every place.

        At the last place, which is the model's own, stand no token and no probability.
        """
        batch, device = self._batch, counts.device
        tokens = torch.full((len(counts), longest + 1), NOTHING, device=device)
        shares = torch.zeros((*tokens.shape, batch.vocab_size), dtype=torch.int64, device=device)
        seen = None if self._seen is None else self._seen[:, None].repeat(1, longest + 1, 1)
        fed = self._unread
        real: Tensor | None = self._unread_real & (counts[:, None] > 0)
        for place in range(longest):
            logits = self._ask(self._models.draft_logits, fed, real, self._draft_cache)
            shares[:, place] = batch.sampling.shares(logits, None if seen is None else seen[:, place])
            tokens[:, place] = draw(shares[:, place], uniforms[:, place])
            fed = tokens[:, place, None].clamp(min=0)
            real = None if min(self._drafting) > place + 1 else counts[:, None] > place + 1
            if seen is not None:
                seen[:, place + 1 :].scatter_(2, fed[:, None].expand(-1, longest - place, -1), True)
        return tokens, shares, seen

    def _ask(self, logits_of: NextLogits | AllLogits, token_ids: Tensor, real: Tensor | None, cache: Any) -> Tensor:
        """The logits for these tokens; those that are not real are padding, and None means that all are."""
        device, segment_ids = self._batch.device, None
        if real is not None:
            token_ids, segment_ids = token_ids.where(real, 0), torch.where(real, 0, -1).to(device)
        return logits_of(token_ids.to(device), segment_ids=segment_ids, cache=cache).to(self._uniforms.device)

    def _go_on(self, tokens: Tensor, accepted: Tensor, drafted: Tensor, seen: Tensor | None) -> None:
        """Remember where each row stands after a round: its last token, what the draft has not read, what was seen."""
        self._last = tokens.gather(1, accepted[:, None]).clamp(min=0)  # of an ended row it may be anything
        before = tokens.gather(1, (accepted[:, None] - 1).clamp(min=0))
        behind = ((accepted == drafted) & (drafted > 0))[:, None]
        self._unread = torch.cat((before.where(behind, self._last), self._last), dim=1)
        self._unread_real = torch.cat((torch.ones_like(behind), behind), dim=1)
        self._written = self._written + accepted + 1
        row = torch.arange(len(tokens), device=tokens.device)
        self._seen = None if seen is None else seen[row, accepted].scatter_(1, self._last, True)


def judge(
    model: Int64[Tensor, "batch places vocab"],
    draft: Int64[Tensor, "batch places vocab"],
    drafted: Int64[Tensor, "batch places"],
    counts: Int64[Tensor, " batch"],
    uniforms: Float64[Tensor, "lanes batch places"],
) -> tuple[Int64[Tensor, "batch places"], Int64[Tensor, " batch"]]:
    """Each row's new tokens, with NOTHING after the last of them, and how many of them are the draft's.

    The draft's token x is accepted with probability min(1, p(x) / q(x)). The first that is not, and all behind it,
    give way to one token from max(p - q, 0), normalised; when all counts[i] are accepted, one more comes from p.
    model, draft: p and q at each place, as `Sampling.shares` gives them; what was drafted was drawn from q.
    Where p lets no token be chosen stands -1, and NO_DRAFT where q did. Sources: see `Speculation`.
    """
    drawing, accepting, mending = uniforms
    place = torch.arange(drafted.shape[1], device=drafted.device)
    ids = drafted.clamp(min=0)[..., None]
    p, q = (shares.gather(-1, ids)[..., 0].double() / shares.sum(-1).clamp(min=1) for shares in (model, draft))
    agreed = (place < counts[:, None]) & (drafted >= 0) & (accepting * q < p)
    accepted = agreed.long().cumprod(-1).sum(-1)

    row, rejected = torch.arange(len(drafted), device=drafted.device), accepted < counts
    p, q = _whole(model[row, accepted]), _whole(draft[row, accepted])
    rest = torch.where(rejected[:, None], (p - q).clamp(min=0), p)
    rest = rest.where(rest.sum(-1, keepdim=True) > 0, p)  # p and q were equal up to rounding
    chosen = draw(rest, mending[row, accepted].where(rejected, drawing[row, accepted]))
    chosen = chosen.where(~rejected | (drafted[row, accepted] >= 0), NO_DRAFT)
    tokens = drafted.where(place < accepted[:, None], NOTHING)
    return tokens.scatter(1, accepted[:, None], chosen[:, None]), accepted


def _whole(shares: Tensor) -> Tensor:
    """The same distribution in shares that reach 2^52 in all, up to rounding, so that two can be subtracted."""
    return (shares.double() / shares.sum(-1, keepdim=True).clamp(min=1) * WHOLE).long()
