"""How the next token is chosen from logits, and the random numbers that it takes."""

import operator
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..config import check_number, check_size
from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The rule by which tokens are chosen; the cuts are made in this order: temperature, top_k, top_p.

    temperature: logits are divided by it before the softmax; 0 is greedy, always the largest logit.
    top_k: only the k largest logits can be chosen (Fan et al. 2018, arXiv:1805.04833).
    top_p: only the nucleus can be chosen, the fewest tokens whose probabilities, renormalised after top_k, reach
    top_p in descending order (Holtzman et al. 2019, arXiv:1904.09751).
    Of equal logits the lower token id comes first, so top_k=1 is greedy. Raises ConfigError.
    """

    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, at_least=0.0)
        if self.top_k is not None:
            check_size("top_k", self.top_k)
        if self.top_p is not None:
            check_number("top_p", self.top_p, above=0.0)
            if self.top_p > 1:
                raise ConfigError(f"top_p is a probability, but {self.top_p!r} is greater than 1; 1 keeps every token.")

    def choose(
        self, logits: Float[Tensor, "batch vocab"], uniforms: Float64[Tensor, " batch"]
    ) -> Int64[Tensor, " batch"]:
        """One token id per row; -1 where no token can be chosen, because the row holds NaN or has no finite maximum.

        uniforms, numbers in [0, 1), pick the token by the inverse of the cumulative distribution in order of token
        id; greedy ignores them. The result is on their device. -1 instead of an error, because to look at the values
        would wait for the device: the caller sees it in the tokens, which it fetches anyway.
        """
        logits = logits.to(uniforms.device)
        tokens = logits.argmax(-1) if self.temperature == 0 else self._draw(logits, uniforms)
        return tokens.where(logits.amax(-1).isfinite(), -1)

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        shares = _probabilities_in_whole_shares(logits, self.temperature)
        if self.top_k is not None or self.top_p is not None:
            shares = self._cut(shares, logits)
        cumulative = shares.cumsum(-1)
        drawn = (uniforms * cumulative[:, -1]).floor().long()  # below the last one, because the uniform is below 1
        return torch.searchsorted(cumulative, drawn[:, None], right=True)[:, 0]

    def _cut(self, shares: Tensor, logits: Tensor) -> Tensor:
        """The shares of the tokens that top_k and top_p keep, 0 for the others."""
        # Ranked by logit, because a high temperature makes shares equal.
        if self.top_k is None:
            values, ids = logits.sort(descending=True)
        else:
            values, ids = logits.topk(min(self.top_k, logits.shape[-1]))
        count = torch.full_like(ids[:, :1], ids.shape[-1])
        if self.top_p is not None:
            ranked = shares.gather(-1, ids)
            up_to = ranked.cumsum(-1)
            nucleus = up_to - ranked < up_to[:, -1:].double() * self.top_p
            count = nucleus.sum(-1, keepdim=True).clamp(min=1)  # only a row of NaN has none
        return shares.where(_best(logits, count, values.gather(-1, count - 1)), 0)


def random_streams(
    seed: int | Sequence[int] | None, num_prompts: int, num_steps: int, *, device: torch.device | str = "cpu"
) -> Float64[Tensor, "num_steps num_prompts"]:
    """The uniform numbers in [0, 1) that each prompt uses at each step.

    An int s gives prompt i the stream (s, i); a list gives prompt i the stream (seed_i, 0), whatever its place in the
    batch; None takes fresh entropy. A stream is a function of seed and step alone: more steps or prompts change
    nothing in it. The numbers are the Philox 4x64 counter generator's, with the stream as key (Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3"). They stay on the CPU where the device has no float64.
    Raises ConfigError for seeds that are not whole numbers in [0, 2^64), or not one for each prompt.
    """
    keys = _stream_keys(seed, num_prompts)
    words = np.empty((num_prompts, num_steps), np.uint64)
    for row, key in zip(words, keys, strict=True):
        row[:] = np.random.Philox(key=np.array(key, np.uint64)).random_raw(num_steps)
    uniforms = torch.from_numpy((words >> np.uint64(11)) * 2.0**-53).T
    return uniforms if torch.device(device).type == "mps" else uniforms.to(device)


def _stream_keys(seed: int | Sequence[int] | None, num_prompts: int) -> list[tuple[int, int]]:
    if seed is None:
        seed = secrets.randbits(64)
    if isinstance(seed, Sequence):
        if len(seed) != num_prompts:
            raise ConfigError(
                f"seed must be one number, or one for each prompt, but there are {len(seed)} seeds "
                f"and {num_prompts} prompts."
            )
        return [(_check_seed(one), 0) for one in seed]
    return [(_check_seed(seed), prompt) for prompt in range(num_prompts)]


def _check_seed(seed: object) -> int:
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise ConfigError(f"seed must be a whole number from 0 to 2^64 - 1, not {seed!r}.")
    return number


def _probabilities_in_whole_shares(logits: Tensor, temperature: float | int) -> Tensor:
    """softmax(logits / temperature), counted in whole shares of 2^-52.

    Sums of whole numbers are the same in any order, on any device, so a token that was cut can never be drawn.
    """
    wide = logits.double()
    wide = (wide - wide.amax(-1, keepdim=True)) / temperature  # 0 at the largest: a tiny temperature cannot overflow
    return (wide.softmax(-1) * 2.0**52).long()


def _best(logits: Tensor, count: Tensor, threshold: Tensor) -> Tensor:
    """True for the `count` largest logits of a row, the last of which is `threshold`; ties go to the lower ids."""
    above, tied = logits > threshold, logits == threshold
    return above | (tied & (tied.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
