"""The bytes that a training step saves for its backward pass: the storages that autograd keeps, each counted once.

Counted is what saved_tensors_hooks see of `TransformerLM.loss` on rows of one document each: every saved tensor,
views of one storage once, without parameters. Weights are float32; with dtype "bfloat16", matrix products run under
autocast. Each set of kernels that may run is counted separately: "amd_cpu" on an AMD processor with AVX-512 and a
compiler, "other_cpu" on any other with a compiler, "pytorch" where prenorm has no kernels of its own and PyTorch's
fused attention runs, such as on a GPU (except head_dim 2, which PyTorch lays out differently).
"""

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
    # The input of the loss, its gradient and the head's (computed in the forward pass), the targets, and their count.
    parts["loss"] = 2 * residual + model.vocab_size * model.d_model * FLOAT32 + tokens * INT64 + INT64
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
    norms = model.norms
    # In float32 what a norm gives is saved once, for all products that read it. Autocast makes each its own copy.
    readers = (3 + 1 + model.gated) if dtype == "bfloat16" else norms
    weights = attention_matrices(model) + feed_forward_matrices(model)
    attention, o_input = _attention(model, window, rotated, batch, context, size, kernels)
    return {
        "residual": (1 if model.parallel else 2) * width * FLOAT32,
        "norms": norms * norm_bytes(model, tokens, kernels) + _qk_norms(model, tokens, size, kernels),
        "projection_inputs": 3 * width * size if dtype == "bfloat16" else width * size,
        "attention": attention + o_input,
        "feed_forward": (readers - (3 if dtype == "bfloat16" else 1)) * width * size
        + _feed_forward(model, tokens, size, kernels),
        "dropout": 2 * width if model.dropout else 0,  # one byte per element: whether it is dropped
        "weight_copies": weights * size if dtype == "bfloat16" else 0,
    }


def norm_bytes(model: Architecture, tokens: int, kernels: Kernels) -> int:
    """What a norm over d_model saves besides its input, the residual."""
    if model.norm == "layer":
        return 2 * tokens * FLOAT32  # mean and 1 / standard deviation
    if kernels != "pytorch":
        return 0
    return tokens * (model.d_model + 1) * FLOAT32  # weight * x, and 1 / root mean square


def _qk_norms(model: Architecture, tokens: int, size: int, kernels: Kernels) -> int:
    if not model.qk_norm:
        return 0
    heads = tokens * (model.num_heads + model.num_kv_heads)
    if kernels != "pytorch":
        return heads * model.head_dim * size
    return heads * (2 * model.head_dim + 1) * FLOAT32  # x in float32, weight * x, and 1 / root mean square


def _attention(
    model: Architecture, window: int | None, rotated: bool, batch: int, context: int, size: int, kernels: Kernels
) -> tuple[int, int]:
    """What attention saves, and what the output projection's input takes beyond that."""
    tokens, scores = batch * context, batch * model.num_heads * context * context
    query, key = tokens * model.query_width * size, tokens * model.kv_width * size
    match _attention_kernel(model, context, size, kernels):
        case "prenorm":  # also the largest score of each query and the sum of its weights
            return 2 * query + 2 * key + 2 * tokens * model.num_heads * FLOAT32, 0
        case "fused":  # also the logarithm of each query's sum, and a mask of numbers where there is a window
            masked = window is not None
            mask = context * context * (size + 1) + (context if kernels == "pytorch" else 0) if masked else 0
            # What attention gives lies as the queries do: rotated ones head by head, others as they are merged.
            in_place = model.num_heads == 1 or context == 1 or not rotated
            copied = not in_place or (masked and kernels == "pytorch")
            return 2 * query + 2 * key + tokens * model.num_heads * FLOAT32 + mask, query * copied
        case _:  # keys and values copied for every query head, the square of weights, and its dropout mask
            dropped = scores * (1 + size) if model.dropout else 0
            copies = key if context == 1 and window else query  # a single query's group is folded instead
            return query + 2 * copies + context * context + scores * size + dropped, query


def _attention_kernel(model: Architecture, context: int, size: int, kernels: Kernels) -> str:
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
