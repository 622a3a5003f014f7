"""The parameter counts of a model, by part."""

from .architecture import Architecture


def parameters(model: Architecture) -> dict[str, int]:
    """The parameters of each part; biases count with their matrices. A tied head has none of its own."""
    d, layers = model.d_model, model.num_layers
    biases = (model.query_width + 2 * model.kv_width) * model.qkv_bias + d * model.o_bias
    ffn_biases = ((1 + model.gated) * model.d_ff + d) * model.ffn_bias
    norms = model.norms * layers + 1
    return {
        "embedding": model.vocab_size * d,
        "positions": model.max_seq_len * d if model.learned_positions else 0,
        "attention": layers * (attention_matrices(model) + biases),
        "feed_forward": layers * (feed_forward_matrices(model) + ffn_biases),
        "norms": norms * model.norm_vectors * d + layers * _qk_norms(model),
        "head": 0 if model.tie_embeddings else model.vocab_size * d,
    }


def attention_matrices(model: Architecture) -> int:
    """Elements of the four attention projections of a block."""
    return 2 * model.d_model * (model.query_width + model.kv_width)


def feed_forward_matrices(model: Architecture) -> int:
    """Elements of the feed-forward matrices of a block."""
    return (2 + model.gated) * model.d_model * model.d_ff


def block_matrices(model: Architecture) -> int:
    """Elements of the matrices of all blocks, which Muon trains."""
    return model.num_layers * (attention_matrices(model) + feed_forward_matrices(model))


def total(model: Architecture) -> int:
    """The total number of parameters."""
    return sum(parameters(model).values())


def tensors(model: Architecture) -> int:
    """The number of parameter tensors."""
    matrices = 4 + 2 + model.gated
    biases = 3 * model.qkv_bias + model.o_bias + (2 + model.gated) * model.ffn_bias
    heads = model.num_heads + model.num_kv_heads
    qk_norms = {"": 0, "per_head": heads}.get(model.qk_norm, 2 * model.norm_vectors)
    norms = model.norms * model.norm_vectors + qk_norms
    outside = 1 + model.learned_positions + model.norm_vectors + (not model.tie_embeddings)
    return model.num_layers * (matrices + biases + norms) + outside


def _qk_norms(model: Architecture) -> int:
    """Numbers in the norms of queries and keys of a block."""
    widths = {"": 0, "shared": 2 * model.head_dim}.get(model.qk_norm, model.query_width + model.kv_width)
    return widths if model.qk_norm == "per_head" else model.norm_vectors * widths
