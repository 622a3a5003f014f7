"""What a model does with a prompt: who attends to whom, how the stream grows, and what each layer would say."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..layers.attention import SelfAttention
from ..models.lm import TransformerLM
from ..ops.backends import use_backend

MOST_TOKENS = 64  # a page shows no more of them so that they can be told apart
CHOICES = 5  # of the logit lens, per layer and token


class Look(NamedTuple):
    """All that a page shows. Layer 0 of streams is the embedding; the last is what the final norm is given."""

    weights: Float[Tensor, "layers heads seq seq"]  # of each query (a row) over keys
    stream_rms: Float[Tensor, "layers_and_one seq"]
    choices: Tensor  # (layers and one, seq, CHOICES): the likeliest next tokens, the likeliest first
    probabilities: Float[Tensor, "layers_and_one seq choices"]


@torch.no_grad()
def look(model: TransformerLM, token_ids: list[int]) -> Look:
    """Run the plain formulas on one row of tokens and keep what happens inside.

    The logit lens reads the stream after each block with the model's own final norm and head.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens", lesswrong.com.
    """
    weights: list[Tensor] = []
    streams: list[Tensor] = []
    with use_backend("reference"), _recorded(model, weights, streams):
        model(torch.tensor([token_ids], device=model.device))
        logits = torch.stack([model._head(model.final_norm(stream[0])).float() for stream in streams])
    probabilities, choices = logits.softmax(-1).topk(min(CHOICES, logits.shape[-1]))
    rms = torch.stack([stream[0].float().square().mean(-1).sqrt() for stream in streams])
    return Look(torch.stack(weights).float().cpu(), rms.cpu(), choices.cpu(), probabilities.cpu())


@contextmanager
def _recorded(model: TransformerLM, weights: list[Tensor], streams: list[Tensor]) -> Iterator[None]:
    """While it lasts, calls of the model leave each layer's attention weights and streams in these lists."""

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        streams.append(output)

    with ExitStack() as stack:
        for module in (model.embedding, *model.layers):
            stack.callback(module.register_forward_hook(keep).remove)
        for block in model.layers:
            attention: Any = block.attn
            _watch(attention, weights)
            stack.callback(delattr, attention, "attend")
        yield


def _watch(attention: SelfAttention, weights: list[Tensor]) -> None:
    """Have an attention leave its weights: they are what it takes from values that are one for one key each."""
    attend = attention.attend

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        keys = k.shape[-2]
        ones = torch.eye(keys, dtype=v.dtype, device=v.device).expand(*k.shape[:-1], keys)
        weights.append(attend(q, k, ones, mask, **options)[0])
        return attend(q, k, v, mask, **options)

    attention.attend = watched  # type: ignore[method-assign]  # taken back by who asked
