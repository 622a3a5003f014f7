"""Growing replies: tokens arrive from the device in rounds, and are emitted one per step."""

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..errors import PrenormError
from .sampling import Sampling, tokens_seen

Token = tuple[int, float | None]  # its id, and its log-probability if requested

# Markers in place of an id, besides NO_TOKEN:
NO_DRAFT = -2  # no token can be chosen from the draft's logits
NOTHING = -3  # the round has no more tokens for this row


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The checked prompts of one call, and how to decode their replies."""

    rows: list[list[int]]
    replies: list["Reply"]
    sampling: Sampling
    uniforms: Float64[Tensor, "substreams steps batch"]
    vocab_size: int
    device: torch.device | str
    logprobs: bool

    @property
    def room(self) -> int:
        """The cache size needed for the longest prompt and its reply, whose last token is never fed back."""
        return max(map(len, self.rows)) + self.uniforms.shape[1] - 1

    def seen(self, token_ids: Tensor, segment_ids: Tensor | None) -> Tensor | None:
        """The tokens present in each row, (batch, vocab), on the device of the uniforms; None without a penalty."""
        if not self.sampling.penalises:
            return None
        return tokens_seen(token_ids, segment_ids, self.vocab_size).to(self.uniforms.device)


class Reply:
    """The new tokens of one prompt, and whether the reply has ended."""

    def __init__(self, ends: list[list[int]], max_new_tokens: int) -> None:
        self.ended = False  # nothing more to compute; waiting tokens are still to be emitted
        self.waiting: deque[Token] = deque()
        self._new: list[int] = []
        self._ends = ends
        self._max_new_tokens = max_new_tokens

    @property
    def missing(self) -> int:
        """How many more tokens it may take."""
        return 0 if self.ended else self._max_new_tokens - len(self._new)

    def take(self, tokens: list[Token]) -> None:
        """Add the next tokens, up to the one that ends the reply."""
        new = self._new
        for token in tokens:
            if self.ended or token[0] == NOTHING:
                return
            self.waiting.append(token)
            new.append(token[0])
            complete = len(new) == self._max_new_tokens or any(new[-len(end) :] == end for end in self._ends)
            self.ended = complete or token[0] < 0

    def give(self) -> tuple[int | None, float | None]:
        """The next waiting token, None once the reply has ended. Raises PrenormError if no token could be chosen."""
        if not self.waiting:
            return None, None
        token, logprob = self.waiting.popleft()
        if token < 0:
            whose = "the draft's logits" if token == NO_DRAFT else "the logits"
            raise PrenormError(
                f"no token can be chosen after {len(self._new) - 1} new ones: {whose} contain NaN, or their largest is "
                "not finite; look for weights that are not finite, or use a wider dtype (float32)."
            )
        return token, logprob


def fetch(tokens: Int64[Tensor, "batch new"], logits: Float[Tensor, "batch new vocab"] | None) -> list[list[Token]]:
    """The tokens and their log-probabilities under the logits, on the host, with one copy from the device.

    Log-probabilities are natural, by log_softmax in float32 or wider.
    """
    if logits is None:
        return [[(token, None) for token in row] for row in tokens.tolist()]
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = logits.to(tokens.device, wide).log_softmax(-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
    packed = torch.stack((tokens.double(), logprobs.double()), dim=-1)  # a token id is exact in float64
    return [[(int(token), logprob) for token, logprob in row] for row in packed.tolist()]
