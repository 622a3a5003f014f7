"""Autoregressive decoding with any callable that returns the next token's logits."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch

from ..errors import ConfigError
from ..validation import as_size
from .logits import NextLogits
from .padding import pad
from .prompts import Prompts, check_ids, check_room, endings, token_lists
from .replies import Batch, Reply, Token, fetch
from .sampling import Sampling, random_streams
from .speculation import SUBSTREAMS, Speculation, speculative_rounds

# The options that a user may give; the model supplies the other arguments of `stream`.
OPTIONS = {field.name for field in fields(Sampling)} | {"max_new_tokens", "seed", "eos_token_id", "stop", "logprobs"}

Step = list[int | None]
Logprobs = list[float | None]


def generate(
    next_logits: NextLogits, make_cache: Callable[..., Any], prompts: Prompts, *, logprobs: bool = False, **options: Any
) -> list[list[int]] | tuple[list[list[int]], list[list[float]]]:
    """The new token ids of each prompt: the results of `stream`, collected. Same options, same errors.

    logprobs: return (replies, logprobs), two lists of the same shape.
    """
    rows = token_lists(prompts)
    replies: list[list[int]] = [[] for _ in rows]
    chosen: list[list[float]] = [[] for _ in rows]
    for step in _steps(next_logits, make_cache, rows, logprobs=logprobs, **options):
        for index, (token, logprob) in enumerate(step):
            if token is not None:
                replies[index].append(token)
            if logprob is not None:
                chosen[index].append(logprob)
    return (replies, chosen) if logprobs else replies


def stream(
    next_logits: NextLogits, make_cache: Callable[..., Any], prompts: Prompts, *, logprobs: bool = False, **options: Any
) -> Generator[Step | tuple[Step, Logprobs], None, None]:
    """One new token id per prompt at each step, None for a prompt that has ended; stops when all have ended.

    A prompt ends with an end-of-text id (eos_token_id: none, one or several), with one of the `stop` sequences of ids,
    matched against new tokens only, or after max_new_tokens (128). The ids that end a prompt are included, and show why
    it ended.

    prompts: sequences of ids, or integer tensors (seq,) or (batch, seq), of any lengths, none empty.
    logprobs: yield (tokens, logprobs) at each step: the natural log of the model's own probability of each token,
    before penalty, temperature and truncation; None where the prompt has ended.
    vocab_size: the model's. max_seq_len: the number of tokens that fit into a row; held: how many each row of the
    caller's cache already holds. device: the model's.
    cache: owned by the caller; by default, make_cache(batch_size=, max_seq_len=) makes one. Afterwards it holds every
    token except the last; rows that ended early hold repeats of theirs.
    repetition_penalty, temperature, top_k, top_p, min_p: see `Sampling`. The penalty applies to the tokens of this
    prompt and its reply, not to earlier tokens in the caller's cache. seed: see `random_streams`.
    speculation: a draft proposes tokens, and the model accepts or replaces them; see `Speculation`.

    Arguments are checked at the call, before the first step: ConfigError, RangeError for token ids and lengths.
    A step whose logits contain NaN, or have no finite maximum, raises PrenormError. Closing the generator cancels it.
    Steps run under torch.inference_mode; the consumer's code between them does not.
    Each step synchronises with the device once, to fetch its tokens, and sends it nothing unless a reply has just
    ended.
    """
    steps = _steps(next_logits, make_cache, prompts, logprobs=logprobs, **options)
    if logprobs:
        return (([token for token, _ in step], [logprob for _, logprob in step]) for step in steps)
    return ([token for token, _ in step] for step in steps)


def check_options(options: dict[str, Any]) -> None:
    """Raise ConfigError for unknown options."""
    if unknown := sorted(options.keys() - OPTIONS):
        raise ConfigError(f"generation has no option named {', '.join(unknown)}; it has {', '.join(sorted(OPTIONS))}.")


def _steps(
    next_logits: NextLogits,
    make_cache: Callable[..., Any],
    prompts: Prompts,
    *,
    vocab_size: int,
    max_seq_len: int,
    held: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    cache: Any = None,
    max_new_tokens: int = 128,
    seed: int | Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop: Sequence[Sequence[int]] = (),
    logprobs: bool = False,
    speculation: Speculation | None = None,
    **sampling: Any,
) -> Generator[list[tuple[int | None, float | None]], None, None]:
    """The steps of `stream`, each token with its log-probability."""
    rows = token_lists(prompts)
    check_ids(rows, vocab_size)
    max_new_tokens = as_size("max_new_tokens", max_new_tokens, at_least=0)
    check_room(rows, max_new_tokens, max_seq_len, held=held)
    ends = endings(eos_token_id, stop)
    if speculation is not None:
        speculation.check(vocab_size, cache)
        check_room(rows, max_new_tokens, speculation.draft_max_seq_len, "the draft's max_seq_len")
    substreams = 1 if speculation is None else SUBSTREAMS
    batch = Batch(
        rows=rows,
        replies=[Reply(ends, max_new_tokens) for _ in rows],
        sampling=Sampling(**sampling),
        uniforms=torch.stack(
            [random_streams(seed, len(rows), max_new_tokens, substream=i, device=device) for i in range(substreams)]
        ),
        vocab_size=vocab_size,
        device=device,
        logprobs=logprobs,
    )

    def steps() -> Generator[list[tuple[int | None, float | None]], None, None]:
        if not rows or not max_new_tokens:
            return
        if speculation is None:
            rounds = _one_by_one(batch, next_logits, make_cache, cache)
        else:
            rounds = speculative_rounds(batch, next_logits, make_cache, speculation)
        for tokens in rounds:
            for reply, new in zip(batch.replies, tokens, strict=True):
                reply.take(new)
            while any(reply.waiting for reply in batch.replies) and all(
                reply.waiting or reply.ended for reply in batch.replies
            ):
                yield [reply.give() for reply in batch.replies]

    return steps()


def _one_by_one(
    batch: Batch, next_logits: NextLogits, make_cache: Callable[..., Any], cache: Any
) -> Iterator[list[list[Token]]]:
    """Rounds of one token per row. A row that has ended is fed its last token again, and its output is ignored."""
    if cache is None:
        cache = make_cache(batch_size=len(batch.rows), max_seq_len=batch.room)
    token_ids, segment_ids = pad(batch.rows, batch.device)
    seen = batch.seen(token_ids, segment_ids)
    ended, known = None, [False] * len(batch.rows)  # which rows have ended, on the device and on the host
    for uniforms in batch.uniforms[0]:
        with torch.inference_mode():  # per step: around the yield it would also apply to the consumer's code
            logits = next_logits(token_ids, segment_ids=segment_ids, cache=cache)
            tokens = batch.sampling.choose(logits, uniforms, seen)[:, None]
            fetched = fetch(tokens, logits[:, None] if batch.logprobs else None)
        yield fetched
        if all(reply.ended for reply in batch.replies):
            return
        with torch.inference_mode():
            tokens = tokens.to(batch.device)
            token_ids, segment_ids = tokens if ended is None else token_ids.where(ended, tokens), None
            if seen is not None:
                seen.scatter_(1, token_ids.to(seen.device), True)
        if known != (known := [reply.ended for reply in batch.replies]):
            ended = torch.tensor(known, device=batch.device)[:, None]
