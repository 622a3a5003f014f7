"""The parameters of a model: our name for each, Hugging Face's name for it, and its shape."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..config import ModelConfig
from ..ops.quantized import GROUP, KINDS

# What a matrix of whole numbers has instead of a weight: see quantized.py.
PACKED, SCALES, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"


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


def matrices_of(config: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """Our names of the layers whose weights are quantised, and the weights' shapes."""
    for parameter in _floats_of(config):
        if _is_matrix(parameter):
            rows, columns = parameter.shape
            yield parameter.name.removesuffix(".weight"), (rows, columns)


def _is_matrix(parameter: Parameter) -> bool:
    return len(parameter.shape) == 2 and parameter.name != "embedding.weight"


def _floats_of(config: ModelConfig) -> Iterator[Parameter]:
    yield Parameter("embedding.weight", "model.embed_tokens.weight", (config.vocab_size, config.d_model))
    layer = _parameters_of_a_layer(config)
    for i in range(config.num_layers):
        for name, hugging_face, shape in layer:
            yield Parameter(f"layers.{i}.{name}", f"model.layers.{i}.{hugging_face}", shape)
    yield Parameter("final_norm.weight", "model.norm.weight", (config.d_model,))
    if not config.tie_embeddings:
        yield Parameter("lm_head.weight", "lm_head.weight", (config.vocab_size, config.d_model))


def _parameters_of_a_layer(config: ModelConfig) -> list[Parameter]:
    d_model, d_ff = config.d_model, config.d_ff
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table = [
        Parameter("norm1.weight", "input_layernorm.weight", (d_model,)),
        Parameter("attn.q_proj.weight", "self_attn.q_proj.weight", (queries, d_model)),
        Parameter("attn.k_proj.weight", "self_attn.k_proj.weight", (keys, d_model)),
        Parameter("attn.v_proj.weight", "self_attn.v_proj.weight", (keys, d_model)),
        Parameter("attn.o_proj.weight", "self_attn.o_proj.weight", (d_model, queries)),
        Parameter("norm2.weight", "post_attention_layernorm.weight", (d_model,)),
        Parameter("ffn.gate_proj.weight", "mlp.gate_proj.weight", (d_ff, d_model)),
        Parameter("ffn.up_proj.weight", "mlp.up_proj.weight", (d_ff, d_model)),
        Parameter("ffn.down_proj.weight", "mlp.down_proj.weight", (d_model, d_ff)),
    ]
    if config.qkv_bias:
        table += [
            Parameter("attn.q_proj.bias", "self_attn.q_proj.bias", (queries,)),
            Parameter("attn.k_proj.bias", "self_attn.k_proj.bias", (keys,)),
            Parameter("attn.v_proj.bias", "self_attn.v_proj.bias", (keys,)),
        ]
    if config.o_bias:
        table += [Parameter("attn.o_proj.bias", "self_attn.o_proj.bias", (d_model,))]
    if config.qk_norm:
        table += [
            Parameter("attn.q_norm.weight", "self_attn.q_norm.weight", (config.head_dim,)),
            Parameter("attn.k_norm.weight", "self_attn.k_norm.weight", (config.head_dim,)),
        ]
    return table
