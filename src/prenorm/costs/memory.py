"""The bytes that a model needs: weights, optimiser state, KV cache, and the peak of a training step."""

from typing import Literal

from .activations import FLOAT32, INT64, SIZES, Dtype, blocks, chunk_rows, saved
from .architecture import Architecture
from .parameters import attention_matrices, block_matrices, feed_forward_matrices, tensors, total

Optimizer = Literal["adamw", "muon"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "muon")


def kv_cache(model: Architecture, batch: int, context: int, dtype: str) -> int:
    """Bytes of the keys and values of `context` tokens a row; with a window, of those that a query can see."""
    held = sum(min(context, window or context) for window in model.layer_windows)
    return 2 * batch * held * model.kv_width * SIZES[dtype]


def optimizer_state(model: Architecture, optimizer: Optimizer) -> int:
    """Bytes of an optimiser's state, in float32.

    adamw: two moving averages per parameter. muon: one for the matrices of the blocks, and AdamW for the rest, as in
    `prenorm train`. AdamW also stores a step count per tensor, 4 bytes.
    """
    matrices = block_matrices(model) if optimizer == "muon" else 0
    counted = tensors(model) - (model.num_layers * (6 + model.gated) if optimizer == "muon" else 0)
    return FLOAT32 * (matrices + 2 * (total(model) - matrices) + counted)


def decoding(model: Architecture, batch: int, context: int, dtype: str) -> int:
    """Bytes for decoding: the weights and the KV cache in `dtype`, and float32 logits of one token per row."""
    return total(model) * SIZES[dtype] + kv_cache(model, batch, context, dtype) + batch * model.vocab_size * FLOAT32


def peak(
    model: Architecture,
    batch: int,
    context: int,
    *,
    dtype: Dtype,
    optimizer: Optimizer,
    every: int = 0,
    watched: bool = False,
) -> int:
    """The peak bytes of a training step: weights, gradients, optimiser state, and all tensors of the step.

    The peak is in the loss, in the backward pass, or in the optimiser step. Counted for PyTorch's ops (see
    activations.py), with all rows in one pass, fused AdamW, and gradients freed after the step. Memory that an
    allocator keeps for reuse comes on top. watched: with hooks on all modules, such as MemTracker's, an untied head is
    called as a module, and autograd keeps the logits.
    """
    called = watched and not model.tie_embeddings and not model.finishes_logits
    standing = FLOAT32 * total(model) + optimizer_state(model, optimizer) + 2 * batch * context * INT64
    step = FLOAT32 * total(model)
    if model.tie_embeddings:  # the embedding's gradient is dense, and is added to the head's, in place unless watched
        step += (1 + watched) * FLOAT32 * model.vocab_size * model.d_model
    if optimizer == "muon":  # steps last, when the gradients of AdamW's parameters have been freed
        step = max(step, FLOAT32 * block_matrices(model) + _muon_step(model))
    return standing + max(
        _in_the_loss(model, batch, context, dtype, every, called=called),
        _in_the_blocks(model, batch, context, dtype, every),
        step,
    )


def _in_the_loss(model: Architecture, batch: int, context: int, dtype: Dtype, every: int, *, called: bool) -> int:
    """Bytes at the last chunk of logits, when everything that the blocks save is still in memory."""
    tokens, size = batch * context, SIZES[dtype]
    residual, head = tokens * model.d_model, model.vocab_size * model.d_model
    kept = saved(model, batch, context, dtype=dtype, kernels="pytorch", every=every)
    rows = min(tokens, chunk_rows(model.vocab_size))
    if model.finishes_logits:  # in its backward pass: three tensors the size of a chunk's logits, or one and the head's
        chunk = FLOAT32 * rows * model.vocab_size  # gradient, in float32 that of the chunk before, too
        gradients = FLOAT32 * head * (1 + (tokens > rows and size == FLOAT32))
        return sum(kept.values()) + residual * FLOAT32 + max(3 * chunk, chunk + gradients)
    if called:  # in its backward pass: three tensors the size of a chunk's logits, and the saved logits of all chunks
        logits = FLOAT32 * (3 * rows + tokens) * model.vocab_size - kept["loss"]
        return sum(kept.values()) + residual * FLOAT32 + logits + (residual * size if dtype == "bfloat16" else 0)
    # Logits and log-probabilities in float32, and the gradient of the previous chunk, if there is one.
    row = size + FLOAT32 + (FLOAT32 if dtype == "bfloat16" else 0)
    logits = max(row * rows, row * min(rows, tokens - rows) + size * rows) * model.vocab_size
    logits = max(logits, (rows * model.vocab_size + head) * size)  # the gradients, and a product with them
    if dtype == "bfloat16":  # copies of the hidden states and the head, and the weights that autocast still caches
        checkpointed = model.num_layers // every if every else 0
        weights = checkpointed * (attention_matrices(model) + feed_forward_matrices(model))
        logits += (residual + head + weights) * size
    scaled = head * FLOAT32  # the gradient of the head, at the start of the backward pass
    return sum(kept.values()) + residual * FLOAT32 + max(logits, scaled)


def _in_the_blocks(model: Architecture, batch: int, context: int, dtype: Dtype, every: int) -> int:
    """The peak bytes in the backward pass of the blocks, reached at the end of a block's feed-forward layer."""
    tokens, size, layers = batch * context, SIZES[dtype], model.num_layers
    residual = tokens * model.d_model * FLOAT32
    saved_in = blocks(model, batch, context, dtype=dtype, kernels="pytorch")
    inside = [sum(parts.values()) for parts in saved_in]
    weights = FLOAT32 * (attention_matrices(model) + feed_forward_matrices(model))
    down = FLOAT32 * model.d_model * model.d_ff
    head = FLOAT32 * model.vocab_size * model.d_model
    on_the_way = residual + 2 * tokens * model.d_ff * size
    mask_of = {window: _up_to_the_mask(model, batch, context, dtype, window) for window in {*model.layer_windows}}
    masks = [mask_of[window] for window in model.layer_windows]
    held = largest = 0  # held: what the blocks before one keep, whose backward pass is still to come
    for number in range(layers):
        is_checkpointed = bool(every) and (number + 1) % every == 0
        ahead = max(inside[number] + down + on_the_way, residual + masks[number] if is_checkpointed else 0)
        if model.attention_softcap:
            ahead = max(ahead, residual + _in_the_softcap(model, saved_in[number], batch, context, size))
        gradients = head + (layers - 1 - number) * weights
        forward = masks[number] if number == layers - 1 else 0  # in the last block, on the way there
        largest = max(largest, held + max(forward, gradients + ahead))
        held += residual if is_checkpointed else inside[number]
    return largest


def _up_to_the_mask(model: Architecture, batch: int, context: int, dtype: Dtype, window: int | None) -> int:
    """Bytes of a block when its window becomes a mask: distances in int64, and three squares of one byte."""
    if window is None:
        return 0
    tokens, size = batch * context, SIZES[dtype]
    projected = tokens * (model.query_width + 2 * model.kv_width) * size
    normed = tokens * model.d_model * (2 * FLOAT32 + 3 * size)
    return normed + projected + (INT64 + 3) * context * context


def _in_the_softcap(model: Architecture, saved_in: dict[str, int], batch: int, context: int, size: int) -> int:
    """Bytes of a block in the backward pass of its softmax, written as a formula: five squares of scores in float32.

    The feed-forward half of the block has been through its backward pass, and so has the product with the weights.
    """
    scores, matrices = batch * model.num_heads * context * context, feed_forward_matrices(model)
    copies = matrices * size if saved_in["weight_copies"] else 0
    freed = saved_in["feed_forward"] + (saved_in["residual"] + saved_in["norms"]) // 2 + copies + scores * size
    return sum(saved_in.values()) - freed + FLOAT32 * (matrices + 5 * scores)


def _muon_step(model: Architecture) -> int:
    """The peak bytes of orthogonalising one matrix's update, by Newton-Schulz iterations in bfloat16."""
    largest = 0
    for width in (model.query_width, model.kv_width, model.d_ff):
        size, square = width * model.d_model, min(width, model.d_model) ** 2
        largest = max(largest, 6 * size + 6 * square, 8 * size + 4 * square)
    return largest
