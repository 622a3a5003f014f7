"""The FLOPs of a model, by part; a multiplication and an addition are two.

Only matrix products are counted, as in PyTorch's FlopCounterMode: norms, rotations, softmax, activations, sums and
look-ups are linear in the size of their inputs. Attention is counted in two ways: full-square, every query with every
key, and causal-exact, every query with the keys that it attends to. A kernel that stops at the diagonal needs about
the latter.
"""

from .architecture import Architecture
from .parameters import attention_matrices, feed_forward_matrices, total

Parts = dict[str, int]


def forward(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of a forward pass over batch x context tokens, with the logits of all of them."""
    return _summed(_layers(model, batch, context, causal=causal), model, batch * context)


def decoded_token(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of decoding one token in each of `batch` rows with a KV cache; it is token number `context` of its row.

    Full-square: it attends to all tokens of the row. Causal-exact: to those in its window; all if there is no window.
    """
    seen = [min(context, window or context) if causal else context for window in model.layer_windows]
    return _summed([_layer(model, batch, batch * one) for one in seen], model, batch)


def backward(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of the backward pass: each product needs two, for the gradients of its two factors."""
    return {part: 2 * flops for part, flops in forward(model, batch, context, causal=causal).items()}


def recomputation(model: Architecture, batch: int, context: int, every: int, *, causal: bool) -> Parts:
    """FLOPs that checkpointing every `every`-th block adds to the backward pass.

    PyTorch stops as soon as all that was saved is there again: without dropout, before a block's last product, unless
    a norm follows it.
    """
    again = _layers(model, batch, context, causal=causal)[every - 1 :: every] if every else []
    last = 0 if model.dropout or model.post_norm else 2 * batch * context * model.d_model * model.d_ff
    parts = _summed(again, model, 0)
    return {**parts, "feed_forward": parts["feed_forward"] - last * len(again)}


def six_n(model: Architecture, tokens: int) -> int:
    """The usual rule for a training step: 6 FLOPs per parameter and token (Kaplan et al. 2020, arXiv:2001.08361)."""
    return 6 * total(model) * tokens


def six_n_and_attention(model: Architecture, tokens: int, context: int) -> int:
    """The rule plus the attention that it leaves out, 12 x layers x query width x context per token.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    return six_n(model, tokens) + 12 * model.num_layers * model.query_width * context * tokens


def pairs(context: int, window: int | None, *, causal: bool) -> int:
    """The number of query-key pairs in a row."""
    if not causal:
        return context * context
    width = min(context, window or context)
    return width * (width + 1) // 2 + (context - width) * width


def _layers(model: Architecture, batch: int, context: int, *, causal: bool) -> list[Parts]:
    """FLOPs of each layer, which differ where windows do."""
    met = [batch * pairs(context, window, causal=causal) for window in model.layer_windows]
    return [_layer(model, batch * context, pairs_met) for pairs_met in met]


def _layer(model: Architecture, tokens: int, pairs_met: int) -> Parts:
    scores = 2 * model.query_width * pairs_met
    return {
        "projections": 2 * tokens * attention_matrices(model),
        "scores": scores,
        "weighted_values": scores,
        "feed_forward": 2 * tokens * feed_forward_matrices(model),
    }


def _summed(layers: list[Parts], model: Architecture, tokens: int) -> Parts:
    """What these layers take together, and the logits of so many tokens."""
    parts = ("projections", "scores", "weighted_values", "feed_forward")
    return {
        **{part: sum(layer[part] for layer in layers) for part in parts},
        "head": 2 * tokens * model.d_model * model.vocab_size,
    }
