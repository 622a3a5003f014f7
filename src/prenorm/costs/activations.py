"""The bytes that a training step saves for its backward pass: the storages that autograd keeps, each counted once.

Counted is what saved_tensors_hooks see of `TransformerLM.loss` on rows of one document each: every saved tensor,
views of one storage once, without parameters. Weights are float32; with dtype "bfloat16", matrix products run under
autocast. Each set of kernels that may run is counted separately: "amd_cpu" on an AMD processor from Zen 3 on, with a
compiler, "other_cpu" on any other with a compiler, "pytorch" where prenorm has no kernels of its own and PyTorch's
fused attention runs, such as on a GPU (except head_dim 2, which PyTorch lays out differently).
"""

import math
from typing import Literal, get_args

from ..family import Activation
from .architecture import Architecture
from .parameters import attention_matrices, feed_forward_matrices

Dtype = Literal["float32", "bfloat16"]
Kernels = Literal["amd_cpu", "other_cpu", "pytorch"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)
Parts = dict[str, int]

SIZES: dict[str, int] = {"float32": 4, "bfloat16": 2}
FLOAT32, INT64 = 4, 8
PARTS = ("residual", "norms", "projection_inputs", "attention", "feed_forward", "dropout", "weight_copies")

# Tensors that an activation saves beside its result: its input, and what it is worked out from.
_ACTIVATION_SAVES: dict[Activation, int] = {
    **{"silu": 1, "gelu": 1, "gelu_tanh": 1, "quick_gelu": 2},
    **{"relu": 0, "relu_squared": 1, "sigmoid": 0, "tanh": 0},
}

# The limits of the kernels: see kernels/cpu/attention.py, kernels/cpu/silu_gate.py and kernels/sdpa.py.
ATTENTION_WIDTH, ATTENTION_MOST_DIM, ATTENTION_LEAST_SCORES = 16, 256, 4096
SILU_GATE_LEAST = 2**15
SHORT_BFLOAT16 = 256
CHUNK_ELEMENTS, ROWS_MULTIPLE = 2**23, 64  # of the loss: see ops/cross_entropy.py


def chunk_rows(vocab_size: int) -> int:
    """How many rows of logits the loss holds at a time."""
    rows = CHUNK_ELEMENTS // vocab_size
    return max(1, rows // ROWS_MULTIPLE * ROWS_MULTIPLE or rows)


def saved(model: Architecture, batch: int, context: int, *, dtype: Dtype, kernels: Kernels, every: int = 0) -> Parts:
    """Bytes saved for the backward pass, by part. every: k if every k-th block is checkpointed, 0 for none."""
    tokens = batch * context
    plain = [layer for layer in range(model.num_layers) if not every or (layer + 1) % every]
    residual = tokens * model.d_model * FLOAT32
    each = blocks(model, batch, context, dtype=dtype, kernels=kernels)
    parts = {part: sum(each[layer][part] for layer in plain) for part in PARTS}
    parts["residual"] += (model.num_layers - len(plain) + 1) * residual  # into the blocks, and into the last norm
    parts["norms"] += norm_bytes(model, tokens, kernels)
    if model.learned_positions:
        parts["positions"] = context * INT64
    else:  # cosines and sines, the same for all blocks of one window
        kinds = {model.layer_windows[layer] for layer in plain if model.layers_rotated[layer]}
        parts["positions"] = len(kinds) * 2 * context * (model.rotated_features // 2) * FLOAT32
    parts["token_ids"] = tokens * INT64
    parts["loss"] = _loss(model, tokens, SIZES[dtype])
    return parts


def blocks(model: Architecture, batch: int, context: int, *, dtype: Dtype, kernels: Kernels) -> list[Parts]:
    """Bytes that each block saves when it is not checkpointed, part by part (PARTS)."""
    layers = list(zip(model.layer_windows, model.layers_rotated, strict=True))
    kinds = {kind: _block(model, *kind, batch, context, dtype=dtype, kernels=kernels) for kind in dict.fromkeys(layers)}
    return [kinds[kind] for kind in layers]


def _block(
    model: Architecture,
    window: int | None,
    rotated: bool,
    batch: int,
    context: int,
    *,
    dtype: Dtype,
    kernels: Kernels,
) -> Parts:
    tokens, size = batch * context, SIZES[dtype]
    width = tokens * model.d_model
    # In float32 what several products read is saved once. Autocast makes each its own copy.
    readers = (3 + 1 + model.gated) if dtype == "bfloat16" else min(2, model.norms)
    weights = attention_matrices(model) + feed_forward_matrices(model)
    attention, o_input = _attention(model, window, rotated, batch, context, size, kernels)
    normed = (1 if model.parallel else 2) * width  # of the residual path, and of the sublayers' outputs
    outputs = normed * _saved_size(model, size, kernels) if model.post_norm else 0
    return {
        "residual": normed * FLOAT32 if model.pre_norm else 0,
        "norms": model.norms * norm_bytes(model, tokens, kernels) + outputs + _qk_norms(model, tokens, size, kernels),
        "projection_inputs": 3 * width * size if dtype == "bfloat16" else width * size,
        "attention": attention + o_input,
        "feed_forward": (readers - (3 if dtype == "bfloat16" else 1)) * width * size
        + _feed_forward(model, tokens, size, kernels),
        "dropout": 2 * width if model.dropout else 0,  # one byte per element: whether it is dropped
        "weight_copies": weights * size if dtype == "bfloat16" else 0,
    }


def norm_bytes(model: Architecture, tokens: int, kernels: Kernels) -> int:
    """What a norm over d_model saves besides its input."""
    return _norm(model, tokens, model.d_model, kernels)


def _norm(model: Architecture, vectors: int, width: int, kernels: Kernels) -> int:
    weight = width * FLOAT32 if model.one_plus_norms else 0
    if model.norm == "layer":
        return weight + 2 * vectors * FLOAT32  # mean and 1 / standard deviation
    if kernels != "pytorch":
        return weight
    return weight + vectors * (width + 1) * FLOAT32  # weight * x, and 1 / root mean square


def _saved_size(model: Architecture, size: int, kernels: Kernels) -> int:
    """Bytes of each number of a norm's input, as it is saved: only our own kernel takes bfloat16."""
    return FLOAT32 if model.norm == "layer" or kernels == "pytorch" else size


def _qk_norms(model: Architecture, tokens: int, size: int, kernels: Kernels) -> int:
    """What the norms of queries and keys save, their inputs among it."""
    if not model.qk_norm:
        return 0
    inputs = tokens * (model.query_width + model.kv_width) * _saved_size(model, size, kernels)
    heads = model.num_heads + model.num_kv_heads
    if model.qk_norm == "wide":
        return inputs + sum(_norm(model, tokens, width, kernels) for width in (model.query_width, model.kv_width))
    if model.qk_norm == "shared":
        each = (tokens * model.num_heads, tokens * model.num_kv_heads)
        return inputs + sum(_norm(model, vectors, model.head_dim, kernels) for vectors in each)
    # What is normed, once more before the weights of the heads, these as one tensor, mean and 1 / standard deviation.
    return 2 * inputs + heads * model.head_dim * FLOAT32 + 2 * tokens * heads * FLOAT32


def _attention(
    model: Architecture, window: int | None, rotated: bool, batch: int, context: int, size: int, kernels: Kernels
) -> tuple[int, int]:
    """What attention saves, and what the output projection's input takes beyond that."""
    tokens, scores = batch * context, batch * model.num_heads * context * context
    query, key = tokens * model.query_width * size, tokens * model.kv_width * size
    clipped = query + 2 * key if model.clip_qkv else 0
    match _attention_kernel(model, context, size, kernels):
        case "prenorm":  # also the largest score of each query and the sum of its weights
            return clipped + 2 * query + 2 * key + 2 * tokens * model.num_heads * FLOAT32, 0
        case "fused":  # also the logarithm of each query's sum, and a mask of numbers where there is a window
            masked = window is not None
            mask = context * context * (size + 1) + (context if kernels == "pytorch" else 0) if masked else 0
            # What attention gives lies as the queries do: head by head, or as they are merged.
            in_place = model.num_heads == 1 or context == 1 or not _is_by_head(model, rotated, kernels)
            copied = not in_place or (masked and kernels == "pytorch")
            return clipped + 2 * query + 2 * key + tokens * model.num_heads * FLOAT32 + mask, query * copied
        case (
            "formula"
        ):  # keys and values copied for every query head, tanh, exp, its sum and whether that is 0, weights
            dropped = scores if model.dropout else 0
            mask = context * context if context > 1 or window else 0
            sums = tokens * model.num_heads * (FLOAT32 + 1)
            return clipped + 3 * query + mask + scores * (2 * FLOAT32 + size) + sums + dropped, query
        case _:  # keys and values copied for every query head, the square of weights, and its dropout mask
            dropped = scores * (1 + size) if model.dropout else 0
            folded = context == 1 and window is not None and not model.dropout  # a single query's group
            copies = key if folded else query
            return clipped + query + 2 * copies + context * context + scores * size + dropped, query


def _is_by_head(model: Architecture, rotated: bool, kernels: Kernels) -> bool:
    """Whether queries lie head by head in memory, as rotations and most norms over a head leave them."""
    normed = model.qk_norm in ("shared", "per_head") and (model.norm == "layer" or kernels != "pytorch")
    return rotated or normed


def _attention_kernel(model: Architecture, context: int, size: int, kernels: Kernels) -> str:
    if model.attention_softcap:
        return "formula"
    if kernels == "pytorch":
        return "fused"
    if model.dropout:
        return "products"
    fits = kernels == "amd_cpu" and model.head_dim % ATTENTION_WIDTH == 0 and model.head_dim <= ATTENTION_MOST_DIM
    if fits and (size == SIZES["bfloat16"] or context * context >= ATTENTION_LEAST_SCORES):
        return "prenorm"
    return "products" if size == SIZES["bfloat16"] and context <= SHORT_BFLOAT16 else "fused"


def _feed_forward(model: Architecture, tokens: int, size: int, kernels: Kernels) -> int:
    hidden = tokens * model.d_ff
    if not model.gated:  # what goes into the activation, or what comes out, and into the last product
        return (1 + _ACTIVATION_SAVES[model.activation]) * hidden * size
    if model.activation != "silu":  # the gate's activation, up, their product, and what the activation needs
        return (3 + _ACTIVATION_SAVES[model.activation]) * hidden * size
    fused = kernels != "pytorch" and hidden >= SILU_GATE_LEAST
    return (3 if fused else 4) * hidden * size  # gate, up, their product, and silu(gate) unless it is fused


def _loss(model: Architecture, tokens: int, size: int) -> int:
    """What the loss saves, the head's product among it."""
    hidden, head, logits = tokens * model.d_model, model.vocab_size * model.d_model, tokens * model.vocab_size
    if not model.finishes_logits:
        # Its input, the gradients of that and of the head (computed in the forward pass), the targets, and their count.
        return 2 * hidden * FLOAT32 + head * FLOAT32 + tokens * INT64 + INT64
    copied = head if size != FLOAT32 else 0  # by autocast, as the input is
    # The logits in float32, and what tanh gives; of each row the target, the logarithm of the sum, whether it counts.
    each = logits * (FLOAT32 + (size if model.logit_softcap else 0)) + tokens * (INT64 + FLOAT32 + 1)
    chunks = math.ceil(tokens / chunk_rows(model.vocab_size))
    return (hidden + copied) * size + each + (2 * chunks + 1) * INT64  # and how many rows count
