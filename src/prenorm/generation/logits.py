"""The model, as decoding sees it: two calls, and any object as the memory of both."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class NextLogits(Protocol):
    """The logits that follow each row's last real token.

    The first call brings the prompts, padded on the right with id 0 to one length; segment_ids are 0 on real tokens
    and -1 on padding, or None where nothing is padded. Every later call brings one token a row; of a draft that falls
    behind (`speculation`) one, two or none. `cache` is what keeps the tokens in between; decoding hands it through,
    and takes rejected tokens back with `cache.rewind(counts, longest=)`: the number of each row's newest tokens to
    forget, and how many tokens the longest row then has at most.
    """

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: Any
    ) -> Float[Tensor, "batch vocab"]: ...


@runtime_checkable
class AllLogits(Protocol):
    """The logits that follow each token; what stands at padding is never looked at. Otherwise as `NextLogits`."""

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: Any
    ) -> Float[Tensor, "batch seq vocab"]: ...
