"""How many operations a model takes, part by part: a multiplication and an addition are two.

Matrix products alone are counted, as PyTorch's FlopCounterMode does: norms, rotations, softmax, activations, sums and
look-ups are linear in the size of their inputs. Attention is counted twice: full-square, every query with every key,
and causal-exact, only with the keys that it sees. A kernel that stops at the diagonal does nearly the latter.
"""

from .architecture import Architecture
from .parameters import attention_matrices, feed_forward_matrices, total

Parts = dict[str, int]


def forward(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of a forward pass over batch x context tokens, with the logits of all of them."""
    tokens = batch * context
    return _parts(model, tokens, batch * pairs(context, model.window, causal=causal))


def decoded_token(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of one more token in each of batch rows, with keys and values cached: it is number `context` of its row.

    Full-square it is compared with all of them; causal-exact with those in its window, which is all without a window.
    """
    seen = min(context, model.window or context) if causal else context
    return _parts(model, batch, batch * seen)


def backward(model: Architecture, batch: int, context: int, *, causal: bool) -> Parts:
    """FLOPs of the backward pass: each product takes two, for the gradients of its two factors."""
    return {part: 2 * flops for part, flops in forward(model, batch, context, causal=causal).items()}


def recomputation(model: Architecture, batch: int, context: int, every: int, *, causal: bool) -> Parts:
    """FLOPs that checkpointing every `every`-th block adds to the backward pass.

    PyTorch stops as soon as all that was saved is there again: without dropout, before a block's last product.
    """
    parts = forward(model, batch, context, causal=causal)
    blocks = model.num_layers // every if every else 0
    last = 0 if model.dropout else 2 * batch * context * model.d_model * model.d_ff
    again = {part: flops // model.num_layers * blocks for part, flops in parts.items() if part != "head"}
    return {**again, "feed_forward": again["feed_forward"] - last * blocks, "head": 0}


def six_n(model: Architecture, tokens: int) -> int:
    """The usual rule for a training step: 6 FLOPs a parameter and token (Kaplan et al. 2020, arXiv:2001.08361)."""
    return 6 * total(model) * tokens


def six_n_and_attention(model: Architecture, tokens: int, context: int) -> int:
    """The rule with the attention that it leaves out, 12 x layers x query width x context a token.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    return six_n(model, tokens) + 12 * model.num_layers * model.query_width * context * tokens


def pairs(context: int, window: int | None, *, causal: bool) -> int:
    """How many queries and keys of a row meet."""
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
