"""The parameter counts of a model, by part."""

from .architecture import Architecture


def parameters(model: Architecture) -> dict[str, int]:
    """The parameters of each part; biases count with their matrices. A tied head has none of its own."""
    d, layers = model.d_model, model.num_layers
    biases = (model.query_width + 2 * model.kv_width) * model.qkv_bias + d * model.o_bias
    ffn_biases = ((1 + model.gated) * model.d_ff + d) * model.ffn_bias
    norms = (1 if model.parallel else 2) * layers + 1
    return {
        "embedding": model.vocab_size * d,
        "positions": model.max_seq_len * d if model.learned_positions else 0,
        "attention": layers * (attention_matrices(model) + biases),
        "feed_forward": layers * (feed_forward_matrices(model) + ffn_biases),
        "norms": norms * model.norm_vectors * d + layers * 2 * model.head_dim * model.qk_norm,
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
    norms = (1 if model.parallel else 2) * model.norm_vectors + 2 * model.qk_norm
    outside = 1 + model.learned_positions + model.norm_vectors + (not model.tie_embeddings)
    return model.num_layers * (matrices + biases + norms) + outside
