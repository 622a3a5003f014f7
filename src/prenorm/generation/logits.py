"""The interface that decoding needs from a model: two callables, and any object as their cache."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class NextLogits(Protocol):
    """The logits after the last token of each row, padding excluded.

    The first call is given the prompts, padded on the right with id 0 to one length; segment_ids are 0 at tokens and -1
    at padding, or None without padding. Every later call is given one token per row; for a draft that is behind
    (`speculation`) one, two or none. `cache` keeps the tokens between calls. Decoding passes it through, and takes back
    rejected tokens with `cache.rewind(counts, longest=)`: how many of each row's newest tokens to forget, and an upper
    bound on the tokens in the longest row afterwards.
    """

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: Any
    ) -> Float[Tensor, "batch vocab"]: ...


@runtime_checkable
class AllLogits(Protocol):
    """The logits after each token; those at padding are ignored. Otherwise as `NextLogits`."""

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: Any
    ) -> Float[Tensor, "batch seq vocab"]: ...
