"""Token after token, from any callable that gives the logits of the next one."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import PrenormError
from .padding import pad
from .prompts import Prompts, check_ids, check_room, endings, token_lists
from .sampling import Sampling, random_streams


@runtime_checkable
class NextLogits(Protocol):
    """The model, as decoding sees it: the logits that follow each row's last real token.

    The first call brings the prompts, padded on the right with id 0 to one length; segment_ids are 0 on real tokens
    and -1 on padding, or None where nothing is padded. Every later call brings one token a row. `cache` is what keeps
    the tokens in between; decoding hands it through untouched.
    """

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: Any
    ) -> Float[Tensor, "batch vocab"]: ...


def generate(
    next_logits: NextLogits, make_cache: Callable[..., Any], prompts: Prompts, **options: Any
) -> list[list[int]]:
    """The new token ids of each prompt: `stream`, collected. Takes the same options, raises the same errors."""
    rows = token_lists(prompts)
    replies: list[list[int]] = [[] for _ in rows]
    for step in stream(next_logits, make_cache, rows, **options):
        for reply, token in zip(replies, step, strict=True):
            if token is not None:
                reply.append(token)
    return replies


def stream(
    next_logits: NextLogits,
    make_cache: Callable[..., Any],
    prompts: Prompts,
    *,
    vocab_size: int,
    max_seq_len: int,
    device: torch.device | str = "cpu",
    cache: Any = None,
    max_new_tokens: int = 128,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    seed: int | Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop: Sequence[Sequence[int]] = (),
) -> Generator[list[int | None], None, None]:
    """One new token id per prompt a step, None for a prompt that has ended; over when all have ended.

    A prompt ends with an end-of-text id (eos_token_id: none, one or several), with one of the `stop` sequences of ids,
    matched against new tokens only, or after max_new_tokens. The ids that ended it are given too: they show why.

    prompts: sequences of ids, or integer tensors (seq,) or (batch, seq), of any lengths, none empty.
    cache: one that the caller owns; without it make_cache(batch_size=, max_seq_len=) makes one. It ends up with all
    tokens but the last, and a prompt that ended before others has its last one repeated.
    max_seq_len: how many tokens a row has room for, those already in the caller's cache not counted.
    temperature, top_k, top_p: see `Sampling`. seed: see `random_streams`.

    Arguments are checked at the call, before the first step: ConfigError, RangeError for token ids and lengths.
    A step whose logits hold NaN, or have no finite maximum, raises PrenormError. Closing the generator cancels it.
    Steps run under torch.inference_mode; the consumer's code between them does not.
    """
    rows = token_lists(prompts)
    check_ids(rows, vocab_size)
    check_room(rows, max_new_tokens, max_seq_len)
    ends = endings(eos_token_id, stop)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    uniforms = random_streams(seed, len(rows), max_new_tokens, device=device)

    def steps() -> Generator[list[int | None], None, None]:
        if not rows or not max_new_tokens:
            return
        room = max(map(len, rows)) + max_new_tokens - 1
        memory = make_cache(batch_size=len(rows), max_seq_len=room) if cache is None else cache
        replies = [_Reply(row, ends) for row in rows]
        token_ids, segment_ids = pad(rows, device)
        for numbers in uniforms:
            with torch.inference_mode():  # a step at a time: around the yield it would hold for the consumer too
                logits = next_logits(token_ids, segment_ids=segment_ids, cache=memory)
                tokens = sampling.choose(logits, numbers).tolist()
            yield [reply.take(token) for reply, token in zip(replies, tokens, strict=True)]
            if all(reply.ended for reply in replies):
                return
            token_ids, segment_ids = torch.tensor([[reply.last] for reply in replies], device=device), None

    return steps()


class _Reply:
    """The new tokens of one prompt, and whether they have ended."""

    def __init__(self, prompt: list[int], ends: list[list[int]]) -> None:
        self.last = prompt[-1]  # fed next; an ended reply feeds its last token again, and what follows is ignored
        self.ended = False
        self._new: list[int] = []
        self._ends = ends

    def take(self, token: int) -> int | None:
        if self.ended:
            return None
        if token < 0:
            raise PrenormError(
                f"no token can be chosen after {len(self._new)} new ones: the logits hold NaN, or their largest is not "
                "finite; look for weights that are not finite, or use a wider dtype (float32)."
            )
        self.last = token
        self._new.append(token)
        self.ended = any(self._new[-len(end) :] == end for end in self._ends)
        return token
