"""The parameters of a model: prenorm's name, Hugging Face's name, and the shape of each."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from ..config import ModelConfig
from ..ops.quantized import GROUP, KINDS

# The suffixes of a quantised matrix's tensors, which replace its weight: see quantized.py.
PACKED, SCALES, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"

OUTSIDE: Mapping[str, str] = MappingProxyType(  # the parts around the layers, and the layers, in most families
    {
        "embedding": "model.embed_tokens",
        "positions.embedding": "model.embed_positions",
        "layers": "model.layers",
        "final_norm": "model.norm",
        "lm_head": "lm_head",
    }
)


# How a part lies in the tensor that is stored: it is its next rows; the same, transposed, as (in, out); its next rows
# head by head, in turn with the other parts; or one of its rows.
Lies = Literal["rows", "columns", "heads", "row"]


class Naming(NamedTuple):
    """How a family names the parts of a model, and how its tensors are stored: several in one, or transposed."""

    parts: Mapping[str, str]  # of a layer, ours: theirs
    fused: Mapping[str, tuple[str, ...]] = {}  # theirs: ours, from top to bottom
    outside: Mapping[str, str] = OUTSIDE  # the parts around the layers, and the layers, ours: theirs
    transposed: bool = False  # whether matrices in layers are stored as (in, out), as GPT-2 has them
    by_head: bool = False  # whether fused matrices take turns head by head, as GPT-NeoX has them
    head_norms: Mapping[str, str] = {}  # ours with a weight for each head: theirs for one {}, or for all
    ignored: str = "(?!)"  # a pattern of tensors that are not weights

    def of(self, name: str) -> str:
        """Their name of one of our tensors in a layer; that of the whole for a part of it."""
        module, _, kind = name.rpartition(".")
        if module.endswith(".weights"):
            return self.head_norms.get(module.removesuffix(".weights"), name).format(kind)
        for whole, matrices in self.fused.items():
            if module in matrices:
                return f"{whole}.{kind}"
        if module in self.parts:
            return f"{self.parts[module]}.{kind}"
        part, _, rest = name.partition(".")
        return f"{self.parts.get(part, part)}.{rest}"

    def lies(self, name: str, shape: tuple[int, ...]) -> Lies:
        """How one of our tensors in a layer is stored."""
        module = name.rpartition(".")[0]
        if module.endswith(".weights"):
            return "rows" if "{}" in self.head_norms.get(module.removesuffix(".weights"), "{}") else "row"
        if self.transposed and len(shape) == 2:
            return "columns"
        return "heads" if self.by_head and any(module in each for each in self.fused.values()) else "rows"

    @property
    def without_prefix(self) -> "Naming":
        """The names that the model inside has when it is saved without its head: layers, not model.layers."""
        return self._replace(outside={ours: name.rpartition(".")[2] for ours, name in self.outside.items()})

    @property
    def embedding_as_head(self) -> "Naming":
        """The names where tied embeddings are stored under that of the head, as safetensors' save_model does."""
        return self._replace(outside={**self.outside, "embedding": self.outside["lm_head"]})

    @property
    def keeps_matrices(self) -> bool:
        """Whether each matrix is stored as it is, so that quantised matrices can be stored, too."""
        return not self.fused and not self.transposed


CLASSIC = Naming({"norm1": "input_layernorm", "attn": "self_attn", "norm2": "post_attention_layernorm", "ffn": "mlp"})


class Parameter(NamedTuple):
    """One tensor of a model. Several with the same name in Hugging Face's layout are one stacked tensor there."""

    name: str
    hugging_face: str
    shape: tuple[int, ...]
    lies: Lies = "rows"


def parameters_of(config: ModelConfig, kind: str | None = None, naming: Naming = CLASSIC) -> Iterator[Parameter]:
    """Every tensor of a model with this config. With tied embeddings there is no lm_head.weight.

    kind: "int8" or "int4" if its matrices are quantised; None if they are floats.
    """
    for parameter in _floats_of(config, naming):
        if kind is None or not _is_matrix(parameter):
            yield parameter
            continue
        name, hugging_face = parameter.name.removesuffix(".weight"), parameter.hugging_face.removesuffix(".weight")
        rows, columns = parameter.shape
        packed, groups = math.ceil(columns * KINDS[kind] / 32), math.ceil(columns / GROUP)
        for end, shape in ((PACKED, (rows, packed)), (SCALES, (rows, groups)), (SHAPE, (2,))):
            yield Parameter(name + end, hugging_face + end, shape)


def matrices_of(config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """The layers whose weights are quantised: prenorm's name, Hugging Face's, and the weight's shape."""
    for parameter in filter(_is_matrix, _floats_of(config)):
        rows, columns = parameter.shape
        yield parameter.name.removesuffix(".weight"), parameter.hugging_face.removesuffix(".weight"), (rows, columns)


def _is_matrix(parameter: Parameter) -> bool:
    return len(parameter.shape) == 2 and not parameter.name.endswith("embedding.weight")  # of tokens, or of positions


def _floats_of(config: ModelConfig, naming: Naming = CLASSIC) -> Iterator[Parameter]:
    theirs, d_model = naming.outside, config.d_model
    yield Parameter("embedding.weight", f"{theirs['embedding']}.weight", (config.vocab_size, d_model))
    if config.family is not None and config.family.learned_positions:
        stored = f"{theirs['positions.embedding']}.weight"
        yield Parameter("positions.embedding.weight", stored, (config.max_seq_len, d_model))
    layer = _shapes_in_a_layer(config)
    for i in range(config.num_layers):
        for name, shape in layer.items():
            stored = f"{theirs['layers']}.{i}.{naming.of(name)}"
            yield Parameter(f"layers.{i}.{name}", stored, shape, naming.lies(name, shape))
    for kind in _kinds_of_norm(config):
        yield Parameter(f"final_norm.{kind}", f"{theirs['final_norm']}.{kind}", (d_model,))
    if not config.tie_embeddings:
        yield Parameter("lm_head.weight", f"{theirs['lm_head']}.weight", (config.vocab_size, d_model))


def _shapes_in_a_layer(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d_model, d_ff, family = config.d_model, config.d_ff, config.family
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    residual, gated = ("pre", True) if family is None else (family.residual, family.gated)
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.{kind}": (d_model,) for name in _NORMS[residual] for kind in _kinds_of_norm(config)
    }
    shapes |= {
        "attn.q_proj.weight": (queries, d_model),
        "attn.k_proj.weight": (keys, d_model),
        "attn.v_proj.weight": (keys, d_model),
        "attn.o_proj.weight": (d_model, queries),
        **({"ffn.gate_proj.weight": (d_ff, d_model)} if gated else {}),
        "ffn.up_proj.weight": (d_ff, d_model),
        "ffn.down_proj.weight": (d_model, d_ff),
    }
    if config.qkv_bias:
        shapes |= {"attn.q_proj.bias": (queries,), "attn.k_proj.bias": (keys,), "attn.v_proj.bias": (keys,)}
    if config.o_bias:
        shapes |= {"attn.o_proj.bias": (d_model,)}
    if config.qk_norm and family is not None and family.per_head_qk_norm:
        for norm, heads in (("q_norm", config.num_heads), ("k_norm", config.num_kv_heads)):
            shapes |= {f"attn.{norm}.weights.{head}": (config.head_dim,) for head in range(heads)}
    elif config.qk_norm:
        wide = family is not None and family.wide_qk_norm
        of_queries, of_keys = (queries, keys) if wide else (config.head_dim, config.head_dim)
        for kind in _kinds_of_norm(config):
            shapes |= {f"attn.q_norm.{kind}": (of_queries,), f"attn.k_norm.{kind}": (of_keys,)}
    if family is not None and family.ffn_bias:
        shapes |= {"ffn.gate_proj.bias": (d_ff,)} if gated else {}
        shapes |= {"ffn.up_proj.bias": (d_ff,), "ffn.down_proj.bias": (d_model,)}
    return shapes


def _kinds_of_norm(config: ModelConfig) -> tuple[str, ...]:
    """The tensors of a norm."""
    norm = "rms" if config.family is None else config.family.norm
    return {"layer": ("weight", "bias"), "layer_bare": ()}.get(norm, ("weight",))


# The norms of a block by where they are applied, as in blocks/families/.
_NORMS = {
    "pre": ("norm1", "norm2"),
    "post": ("post_norm1", "post_norm2"),
    "sandwich": ("norm1", "post_norm1", "norm2", "post_norm2"),
    "parallel": ("norm1",),
    "parallel_two_norms": ("norm1", "norm2"),
}
