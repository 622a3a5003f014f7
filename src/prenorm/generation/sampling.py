"""Choosing the next token from logits, and the random numbers for it."""

import operator
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from ..errors import ConfigError
from ..ops import backends
from ..validation import as_size, check_number

ONE = 2**52  # a probability of 1, in fixed point
NO_TOKEN = -1  # where no token can be chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The rule for choosing tokens, applied in this order: repetition_penalty, temperature, top_k, top_p, min_p.

    repetition_penalty: the logits of tokens already in the row are divided by it if positive and multiplied by it if
    negative, so that values above 1 make repetition less likely; None or 1 is off (Keskar et al. 2019,
    arXiv:1909.05858).
    temperature: logits are divided by it before the softmax; 0 is greedy decoding.
    top_k: only the k largest logits are kept (Fan et al. 2018, arXiv:1805.04833).
    top_p: only the nucleus is kept, the fewest tokens in descending order whose probabilities, renormalised after
    top_k, reach top_p (Holtzman et al. 2019, arXiv:1904.09751).
    min_p: only tokens at least min_p times as probable as the most probable one are kept (Nguyen et al. 2024,
    arXiv:2407.01082).
    Of equal logits the lower token id ranks first, so top_k=1 is greedy. Raises ConfigError.
    """

    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    min_p: float | int | None = None
    repetition_penalty: float | int | None = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, at_least=0.0)
        if self.top_k is not None:
            object.__setattr__(self, "top_k", as_size("top_k", self.top_k))
        _check_probability("top_p", self.top_p, "1 keeps every token")
        _check_probability("min_p", self.min_p, "1 keeps only the most probable")
        if self.repetition_penalty is not None:
            check_number("repetition_penalty", self.repetition_penalty, above=0.0)

    @property
    def penalises(self) -> bool:
        """Whether the choice depends on the tokens already in a row."""
        return self.repetition_penalty not in (None, 1)

    def choose(
        self,
        logits: Float[Tensor, "*batch vocab"],
        uniforms: Float64[Tensor, "*batch"],
        seen: Bool[Tensor, "*batch vocab"] | None = None,
    ) -> Int64[Tensor, "*batch"]:
        """One token id per row; -1 where no token can be chosen, because the row has NaN or no finite maximum.

        uniforms, numbers in [0, 1), select the token by the inverse of the cumulative distribution over token ids;
        greedy decoding ignores them. The result is on their device. It is -1 instead of an error, because checking the
        values would wait for the device; the caller finds it in the tokens, which it fetches anyway.
        seen: the tokens that repetition_penalty applies to, on the device of the uniforms; None: none.
        """
        logits = logits.to(uniforms.device)
        if self.temperature == 0:
            logits = self._penalised(logits, seen)
            if kernel := backends.choose("argmax", logits):
                return kernel(logits)
            return logits.argmax(-1).where(logits.amax(-1).isfinite(), NO_TOKEN)
        return draw(self.fixed_point_probs(logits, seen), uniforms)

    def fixed_point_probs(
        self, logits: Float[Tensor, "*batch vocab"], seen: Bool[Tensor, "*batch vocab"] | None = None
    ) -> Int64[Tensor, "*batch vocab"]:
        """The probability of choosing each token, as an integer in units of about 2^-52; they need not sum to 1.

        All are 0 in a row from which no token can be chosen. Integer sums are the same in any order and on any device,
        so a token that was cut can never be drawn.
        """
        logits = self._penalised(logits, seen)
        largest = logits.amax(-1, keepdim=True)
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            probs = torch.zeros_like(logits, dtype=torch.int64).scatter_(-1, best, ONE)
        else:
            # The largest becomes 0, so a tiny temperature cannot overflow.
            wide = (logits.double() - largest.double()) / self.temperature
            probs = (wide.softmax(-1) * ONE).long()
            if self.top_k is not None or self.top_p is not None:
                probs = self._cut(probs, logits)
            if self.min_p is not None:
                probs = probs.where(probs >= probs.amax(-1, keepdim=True).double() * self.min_p, 0)
        return probs.where(largest.isfinite(), 0)

    def _penalised(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        penalty = self.repetition_penalty
        if seen is None or penalty is None:
            return logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 would create ties
        return wide.where(~seen, torch.where(wide > 0, wide / penalty, wide * penalty))

    def _cut(self, probs: Tensor, logits: Tensor) -> Tensor:
        """The probabilities of the tokens that top_k and top_p keep, 0 for the others."""
        # Ranked by logit, because a high temperature makes probabilities equal.
        if self.top_k is None:
            values, ids = logits.sort(descending=True)
        else:
            values, ids = logits.topk(min(self.top_k, logits.shape[-1]))
        count = torch.full_like(ids[..., :1], ids.shape[-1])
        if self.top_p is not None:
            ranked = probs.gather(-1, ids)
            up_to = ranked.cumsum(-1)
            nucleus = up_to - ranked < up_to[..., -1:].double() * self.top_p
            count = nucleus.sum(-1, keepdim=True).clamp(min=1)  # 0 only in a row of NaN
        threshold = values.gather(-1, count - 1)
        above, tied = logits > threshold, logits == threshold
        # Keep the `count` largest logits, the smallest of which is the threshold; ties go to lower ids.
        kept = above | (tied & (tied.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
        return probs.where(kept, 0)


def draw(probs: Int64[Tensor, "*batch vocab"], uniforms: Float64[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
    """A token id per row, sampled in proportion to `probs` by inverting their cumulative sum; -1 where all are 0."""
    cumulative = probs.cumsum(-1)
    total = cumulative[..., -1]
    drawn = (uniforms * total).floor().long()  # below the total, because the uniform is below 1
    return torch.searchsorted(cumulative, drawn[..., None], right=True)[..., 0].where(total > 0, NO_TOKEN)


def tokens_seen(
    token_ids: Int[Tensor, "batch seq"], segment_ids: Int[Tensor, "batch seq"] | None, vocab_size: int
) -> Bool[Tensor, "batch {vocab_size}"]:
    """True for the tokens present in each row, ignoring padding on the right, where segment_ids are negative."""
    if segment_ids is not None:
        token_ids = token_ids.where(segment_ids >= 0, token_ids[:, :1])
    seen = torch.zeros(len(token_ids), vocab_size, dtype=torch.bool, device=token_ids.device)
    return seen.scatter_(1, token_ids, True)


def random_streams(
    seed: int | Sequence[int] | None,
    num_prompts: int,
    num_steps: int,
    *,
    substream: int = 0,
    device: torch.device | str = "cpu",
) -> Float64[Tensor, "num_steps num_prompts"]:
    """The uniform numbers in [0, 1) that each prompt uses at each step.

    An int s gives prompt i the stream (s, i); a list gives prompt i the stream (seed_i, 0), whatever its index in the
    batch; None uses fresh entropy. A stream depends only on seed and step, not on the number of steps or prompts. It
    comes from the Philox 4x64 counter-based generator, with the stream as key (Salmon et al. 2011, "Parallel random
    numbers: as easy as 1, 2, 3"). The numbers stay on the CPU if the device has no float64.
    substream: which of several independent streams of numbers, where a step needs more than one number per prompt; it
    is the highest word of the counter.
    Raises ConfigError for seeds that are not integers in [0, 2^64), or not one per prompt.
    """
    words = np.empty((num_prompts, num_steps), np.uint64)
    for row, key in zip(words, _stream_keys(seed, num_prompts), strict=True):
        row[:] = np.random.Philox(counter=substream << 192, key=np.array(key, np.uint64)).random_raw(num_steps)
    uniforms = torch.from_numpy((words >> np.uint64(11)) * 2.0**-53).T
    return uniforms if torch.device(device).type == "mps" else uniforms.to(device)


def _stream_keys(seed: Any, num_prompts: int) -> list[tuple[int, int]]:
    if seed is None:
        seed = secrets.randbits(64)
    if isinstance(seed, np.ndarray | Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence):
        if len(seed) != num_prompts:
            raise ConfigError(
                f"seed must be one integer or one per prompt, but there are {len(seed)} seeds and {num_prompts} "
                "prompts."
            )
        return [(_check_seed(one), 0) for one in seed]
    return [(_check_seed(seed), prompt) for prompt in range(num_prompts)]


def _check_seed(seed: object) -> int:
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise ConfigError(f"seed must be an integer from 0 to 2^64 - 1, not {seed!r}.")
    return number


def _check_probability(name: str, value: float | int | None, one: str) -> None:
    if value is None:
        return
    check_number(name, value, above=0.0)
    if value > 1:
        raise ConfigError(f"{name} is a probability, but {value!r} is greater than 1; {one}.")
