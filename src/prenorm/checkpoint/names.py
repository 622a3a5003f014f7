"""The parameters of a model: our name for each, Hugging Face's name for it, and its shape."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..config import ModelConfig
from ..ops.quantized import GROUP, KINDS

# What a matrix of whole numbers has instead of a weight: see quantized.py.
PACKED, SCALES, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"

# The parts of a layer: our names, and Hugging Face's.
_PARTS = {"norm1": "input_layernorm", "attn": "self_attn", "norm2": "post_attention_layernorm", "ffn": "mlp"}


class Parameter(NamedTuple):
    """One tensor of a model."""

    name: str
    hugging_face: str
    shape: tuple[int, ...]


def parameters_of(config: ModelConfig, kind: str | None = None) -> Iterator[Parameter]:
    """Every tensor that a model of this shape has, one by one. With tied embeddings there is no lm_head.weight.

    kind: "int8" or "int4" where its matrices are whole numbers; None where they are floats.
    """
    for parameter in _floats_of(config):
        if kind is None or not _is_matrix(parameter):
            yield parameter
            continue
        name, hugging_face = parameter.name.removesuffix(".weight"), parameter.hugging_face.removesuffix(".weight")
        rows, columns = parameter.shape
        packed, groups = math.ceil(columns * KINDS[kind] / 32), math.ceil(columns / GROUP)
        for end, shape in ((PACKED, (rows, packed)), (SCALES, (rows, groups)), (SHAPE, (2,))):
            yield Parameter(name + end, hugging_face + end, shape)


def matrices_of(config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """The layers whose weights are quantised: our name, Hugging Face's, and the weight's shape."""
    for name, hugging_face, shape in filter(_is_matrix, _floats_of(config)):
        rows, columns = shape
        yield name.removesuffix(".weight"), hugging_face.removesuffix(".weight"), (rows, columns)


def _is_matrix(parameter: Parameter) -> bool:
    return len(parameter.shape) == 2 and parameter.name != "embedding.weight"


def _floats_of(config: ModelConfig) -> Iterator[Parameter]:
    yield Parameter("embedding.weight", "model.embed_tokens.weight", (config.vocab_size, config.d_model))
    layer = list(_parameters_of_a_layer(config))
    for i in range(config.num_layers):
        for name, hugging_face, shape in layer:
            yield Parameter(f"layers.{i}.{name}", f"model.layers.{i}.{hugging_face}", shape)
    yield Parameter("final_norm.weight", "model.norm.weight", (config.d_model,))
    if not config.tie_embeddings:
        yield Parameter("lm_head.weight", "lm_head.weight", (config.vocab_size, config.d_model))


def _parameters_of_a_layer(config: ModelConfig) -> Iterator[Parameter]:
    d_model, d_ff = config.d_model, config.d_ff
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (d_model,),
        "attn.q_proj.weight": (queries, d_model),
        "attn.k_proj.weight": (keys, d_model),
        "attn.v_proj.weight": (keys, d_model),
        "attn.o_proj.weight": (d_model, queries),
        "norm2.weight": (d_model,),
        "ffn.gate_proj.weight": (d_ff, d_model),
        "ffn.up_proj.weight": (d_ff, d_model),
        "ffn.down_proj.weight": (d_model, d_ff),
    }
    if config.qkv_bias:
        shapes |= {"attn.q_proj.bias": (queries,), "attn.k_proj.bias": (keys,), "attn.v_proj.bias": (keys,)}
    if config.o_bias:
        shapes |= {"attn.o_proj.bias": (d_model,)}
    if config.qk_norm:
        shapes |= {"attn.q_norm.weight": (config.head_dim,), "attn.k_norm.weight": (config.head_dim,)}
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        yield Parameter(name, f"{_PARTS[part]}.{rest}", shape)
