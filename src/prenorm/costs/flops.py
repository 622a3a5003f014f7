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
    tokens = batch * context
    return _parts(model, tokens, batch * pairs(context, model.window, causal=causal))


def decoded_token(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of decoding one token in each of `batch` rows with a KV cache; it is token number `context` of its row.

    Full-square: it attends to all tokens of the row. Causal-exact: to those in its window; all if there is no window.
    """
    seen = min(context, model.window or context) if causal else context
    return _parts(model, batch, batch * seen)


def backward(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of the backward pass: each product needs two, for the gradients of its two factors."""
    return {part: 2 * flops for part, flops in forward(model, batch, context, causal=causal).items()}


def recomputation(model: Architecture, batch: int, context: int, every: int, *, causal: bool) -> Parts:
    """FLOPs that checkpointing every `every`-th block adds to the backward pass.

    PyTorch stops as soon as all saved tensors are recomputed: without dropout, before a block's last product.
    """
    parts = forward(model, batch, context, causal=causal)
    blocks = model.num_layers // every if every else 0
    last = 0 if model.dropout else 2 * batch * context * model.d_model * model.d_ff
    again = {part: flops // model.num_layers * blocks for part, flops in parts.items() if part != "head"}
    return {**again, "feed_forward": again["feed_forward"] - last * blocks, "head": 0}


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


def _parts(model: Architecture, tokens: int, pairs_seen: int) -> Parts:
    layers, scores = model.num_layers, 2 * model.query_width * pairs_seen
    return {
        "projections": 2 * tokens * layers * attention_matrices(model),
        "scores": layers * scores,
        "weighted_values": layers * scores,
        "feed_forward": 2 * tokens * layers * feed_forward_matrices(model),
        "head": 2 * tokens * model.d_model * model.vocab_size,
    }
