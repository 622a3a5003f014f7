"""What a cell stands for: the model, the tokens, and each sequence alone, which is what the oracle is asked."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, RopeScaling, TransformerBlock, TransformerLM
from prenorm.family import Family

from ..oracle import models
from ..oracle.families import family_model
from ..oracle.formulas import Array
from ..oracle.inputs import ids_of, integers, lay_out, mask_of, normal, randomise, segments, weights_of
from ..oracle.tolerance import array
from .cells import D_FF, D_MODEL, ROOM, TARGET_VOCAB, VOCAB, Cell

SCALINGS = {
    "none": None,
    "linear": RopeScaling("linear", 3.0),
    "llama3": RopeScaling("llama3", 8.0, original_max_seq_len=16),
}

# What each family of the grid has beyond the block: every switch of the record is in one of them. Scores are kept small
# where norms or lengthened pairs would make softmax all but one-hot, and few numbers lie where clipping has a corner.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "family": Family(
            residual="sandwich",
            activation="gelu_tanh",
            one_plus_norms=True,
            windows=(5, 0),
            attention_scale=0.3,
            attention_softcap=2.0,
            embedding_scale=5.6,
            logit_softcap=1.5,
        )
    },
    "gemma3": {
        "qk_norm": True,
        "rope_scaling": SCALINGS["linear"],
        "family": Family(
            residual="sandwich",
            activation="gelu_tanh",
            one_plus_norms=True,
            windows=(5, 0),
            window_rope_theta=30.0,
            window_rope_scaling=SCALINGS["llama3"],
            embedding_scale=5.6,
        ),
    },
    "olmo2": {"qk_norm": True, "qkv_bias": True, "family": Family(residual="post", wide_qk_norm=True)},
    "exaone4": {"qk_norm": True, "family": Family(residual="post", windows=(0, 16), rotated=(False, True))},
    "granite": {
        "qkv_bias": True,
        "o_bias": True,
        "family": Family(
            ffn_bias=True, attention_scale=0.11, residual_scale=0.22, embedding_scale=3.0, logit_divisor=5.0
        ),
    },
    "glm4": {
        "rope_interleaved": True,
        "qkv_bias": True,
        "family": Family(residual="sandwich", rotary_dim=4, attention_scale=0.15),
    },
    "smollm3": {"family": Family(activation="gelu", ffn_bias=True, rotated=(True, False))},
    "olmo": {"family": Family(norm="layer_bare", clip_qkv=2.5)},
    "nemotron": {
        "family": Family(norm="layer", one_plus_norms=True, activation="relu_squared", gated=False, rotary_dim=4)
    },
    "cohere": {
        "rope_interleaved": True,
        "family": Family(norm="layer_scale", residual="parallel", activation="gelu", logit_divisor=3.0),
    },
    "stablelm": {
        "qk_norm": True,
        "qkv_bias": True,
        "family": Family(norm="layer", per_head_qk_norm=True, rotary_dim=2),
    },
    "gpt2": {
        "qkv_bias": True,
        "o_bias": True,
        "family": Family(
            norm="layer",
            activation="gelu_tanh",
            gated=False,
            ffn_bias=True,
            learned_positions=True,
            attention_scale_by_layer=True,
        ),
    },
    "gpt_neox": {
        "qkv_bias": True,
        "o_bias": True,
        "family": Family(
            norm="layer", residual="parallel_two_norms", activation="gelu", gated=False, ffn_bias=True, rotary_dim=2
        ),
    },
    "yarn": {
        "rope_scaling": RopeScaling("yarn", 8.0, original_max_seq_len=16),
        "family": Family(activation="relu_squared", attention_scale=0.15),
    },
}


@dataclass(frozen=True)
class Call:
    """The arguments of one plain call of a model."""

    inputs: tuple[Tensor, ...]  # (x,), (token_ids,) or (source_ids, target_ids)
    options: dict[str, Any] = field(default_factory=dict)


class Case:
    """A cell's model and its inputs. `calls` are the plain passes that say what is right: one for a whole batch, one
    for each row or document where these differ in length."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.dtype = getattr(torch, cell.dtype)
        self.module = build(cell, self.dtype)
        self.calls = [_call(cell, cell.leading, cell.seq, 0)] if cell.rows is None else _rows(cell)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Of the one call."""
        (call,) = self.calls
        return call.inputs

    @property
    def options(self) -> dict[str, Any]:
        """Of the one call."""
        (call,) = self.calls
        return call.options

    @property
    def rows(self) -> list[tuple[Tensor, ...]]:
        """The inputs of each row."""
        return [call.inputs for call in self.calls]

    @property
    def leaves(self) -> list[Tensor]:
        """The inputs that gradients are asked of."""
        return [x for call in self.calls for x in call.inputs if x.is_floating_point()]

    def widened(self) -> "Case":
        """The same numbers in float64."""
        wide = Case(dataclasses.replace(self.cell, dtype="float64"))
        wide.calls = [Call(tuple(_wide(x) for x in call.inputs), call.options) for call in self.calls]
        wide.module.load_state_dict(self.module.state_dict())
        return wide

    def oracle(self) -> Array:
        """What the papers' formulas in NumPy give for the calls, one after another; an empty row gives nothing."""
        calls = self.calls if self.cell.rows is None else [call for call in self.calls if len(call.inputs[-1])]
        outputs = [_oracle(self.cell, weights_of(self.module), call) for call in calls]
        return outputs[0] if self.cell.rows is None else np.concatenate(outputs)


def build(cell: Cell, dtype: torch.dtype, *, weights: bool = True, **options: Any) -> nn.Module:
    """The model of a cell in eval mode, with random weights that bfloat16 holds exactly.

    Biases are near 0, and norms near what multiplies by 1, so that no query is far from all keys but one: what q and k
    then get is chance.
    """
    dropout = options.pop("dropout", 0.0)
    module: nn.Module
    if cell.subject == "encoder-decoder":
        module = EncoderDecoder(_encoder_decoder_config(cell, dropout), dtype=dtype)
    elif cell.subject in ("lm", "family"):
        module = TransformerLM(_config(cell, dropout), dtype=dtype)
    else:
        limits = {"causal": cell.causal, "window": cell.window, **options}
        shape = {**_attention_options(cell), "num_heads": cell.heads[0], "d_ff": D_FF, "eps": cell.eps}
        module = TransformerBlock(D_MODEL, **shape, **limits, max_seq_len=ROOM, dtype=dtype, dropout=dropout)
    if weights:
        randomise(module, cell.weights)
        one_plus = cell.family is not None and FAMILIES[cell.family]["family"].one_plus_norms
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                near_zero = name.endswith("bias") or (one_plus and "norm" in name)
                parameter.copy_((parameter - 1 if near_zero else parameter).bfloat16())
    return module.eval()


def _attention_options(cell: Cell) -> dict[str, Any]:
    return {
        "num_kv_heads": cell.heads[1],
        "head_dim": cell.heads[2],
        "qk_norm": cell.qk_norm,
        "rope_interleaved": cell.interleaved,
        "rope_theta": cell.theta,
        "rope_scaling": SCALINGS[str(cell.scaling)],
        "qkv_bias": cell.biases in ("qkv", "both"),
        "o_bias": cell.biases in ("o", "both"),
    }


def _config(cell: Cell, dropout: float) -> ModelConfig:
    assert cell.layers is not None
    own = {"num_kv_heads": cell.heads[1], "head_dim": cell.heads[2]}
    own = _attention_options(cell) if cell.family is None else own | FAMILIES[cell.family]
    return ModelConfig(
        VOCAB,
        D_MODEL,
        cell.layers[0],
        cell.heads[0],
        **own,
        d_ff=D_FF,
        max_seq_len=ROOM,
        eps=cell.eps,
        window=cell.window,
        tie_embeddings=bool(cell.tied),
        dropout=dropout,
    )


def _encoder_decoder_config(cell: Cell, dropout: float) -> EncoderDecoderConfig:
    assert cell.layers is not None
    return EncoderDecoderConfig(
        VOCAB,
        D_MODEL,
        cell.layers[0],
        cell.heads[0],
        cell.layers[1],
        d_ff=D_FF,
        target_vocab_size=VOCAB if cell.tied else TARGET_VOCAB,
        max_seq_len=ROOM,
        positions=cell.positions_are,
        eps=cell.eps,
        tie_embeddings=bool(cell.tied),
        dropout=dropout,
    )


# The inputs


def _call(cell: Cell, leading: tuple[int, ...] | None, seq: int | None, number: int) -> Call:
    assert leading is not None
    assert seq is not None
    seed = 1000 * cell.inputs + 10 * number
    if cell.subject == "encoder-decoder":
        source_seq = seq + 5 if cell.mask in (None, "none") and seq < ROOM - 5 else seq
        source = integers(*leading, source_seq, limit=VOCAB, seed=seed)
        target = integers(*leading, seq, limit=VOCAB if cell.tied else TARGET_VOCAB, seed=seed + 1)
        return Call((source, target), _both_sides(cell, source, target))
    if cell.subject in ("lm", "family"):
        inputs = integers(*leading, seq, limit=VOCAB, seed=seed)
    else:
        inputs = normal(*leading, seq, D_MODEL, seed=seed, dtype=getattr(torch, cell.dtype))
        inputs = lay_out(inputs, cell.layout or "contiguous")
    options: dict[str, Any] = {}
    if cell.positions in ("(seq,)", "(..., seq)"):
        dims = leading if cell.positions == "(..., seq)" else ()
        options["token_positions"] = integers(*dims, seq, limit=ROOM, seed=seed + 2)
    kind = cell.mask or "none"
    if kind in ("padding", "documents", "documents and a mask"):
        options["segment_ids"] = _segment_ids(kind, *leading, seq, seed=seed + 3)
    if kind == "documents and a mask" or kind.startswith("("):
        dims = {
            "(q, kv)": (seq,),
            "(..., 1, q, kv)": (*leading, 1, seq),
            "(..., heads, q, kv)": (*leading, cell.heads[0], seq),
            "(..., 1, 1, kv)": (*leading, 1, 1),
        }.get(kind, (*leading, 1, seq))
        options["mask"] = mask_of(*dims, seq, seed=seed + 4)
    return Call((inputs,), options)


def _both_sides(cell: Cell, source: Tensor, target: Tensor) -> dict[str, Any]:
    """The segment ids of an encoder-decoder; packed, both sides have the same documents in the same places."""
    kind, seed = cell.mask or "none", 1000 * cell.inputs + 3
    if kind == "documents":
        ids = _segment_ids(kind, *source.shape, seed=seed)
        ids = torch.where(ids >= 0, _numbers_of_runs(ids), ids)  # no id twice in a row: it would not say which is read
        return {"source_segment_ids": ids, "target_segment_ids": ids}
    options = {}
    if kind in ("padding", "padding of the source"):
        options["source_segment_ids"] = _segment_ids("padding", *source.shape, seed=seed)
    if kind in ("padding", "padding of the target"):
        options["target_segment_ids"] = _segment_ids("padding", *target.shape, seed=seed + 1)
    return options


def _segment_ids(kind: str, *shape: int, seed: int) -> Tensor:
    """Padding, tokens, padding in every row; or runs of a few ids, of which some are padding and some come again."""
    numbers = np.random.default_rng(seed)
    *leading, seq = shape
    rows = []
    for _ in range(int(np.prod(leading))):
        if kind == "padding":
            left, right = numbers.integers(0, seq // 4 + 1, 2)
            rows.append(segments([(-1, int(left)), (0, int(seq - left - right)), (-2, int(right))]))
        else:
            starts = numbers.random(seq) < 0.2
            ids = [int(identity) for identity in numbers.integers(-1, 3, seq)]
            rows.append(torch.tensor([ids[int(run)] for run in np.cumsum(starts) % max(1, seq)], dtype=torch.int64))
    return torch.stack(rows).reshape(shape) if rows else torch.zeros(shape, dtype=torch.int64)


def _numbers_of_runs(ids: Tensor) -> Tensor:
    rows = [np.cumsum(np.diff(row, prepend=row[0]) != 0) for row in ids.reshape(-1, ids.shape[-1]).numpy()]
    return torch.from_numpy(np.array(rows, dtype=np.int64)).reshape(ids.shape)


def _rows(cell: Cell) -> list[Call]:
    assert cell.rows is not None
    return [_call(cell, (), length, number) for number, length in enumerate(cell.rows)]


def _wide(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


# The oracle


def _oracle(cell: Cell, weights: dict[str, Array], call: Call) -> Array:
    given = {name: ids_of(value) for name, value in call.options.items()}
    if cell.subject == "encoder-decoder":
        assert cell.layers is not None
        sizes = {"num_layers": cell.layers[0], "num_decoder_layers": cell.layers[1], "num_heads": cell.heads[0]}
        return models.encoder_decoder(weights, *(x.numpy() for x in call.inputs), **sizes, eps=cell.eps, **given)
    if cell.subject == "family":
        config = dataclasses.asdict(_config(cell, 0.0))
        return family_model(weights, call.inputs[0].numpy(), config=config, **given)
    scaling = SCALINGS[str(cell.scaling)]
    options = {
        "num_heads": cell.heads[0],
        "num_kv_heads": cell.heads[1],
        "head_dim": cell.heads[2],
        "window": cell.window,
        "qk_norm": bool(cell.qk_norm),
        "rope_interleaved": bool(cell.interleaved),
        "rope_theta": cell.theta,
        "rope_scaling": None if scaling is None else dataclasses.asdict(scaling),
        "eps": cell.eps,
    }
    if cell.subject == "lm":
        assert cell.layers is not None
        return models.language_model(weights, call.inputs[0].numpy(), num_layers=cell.layers[0], **options, **given)
    return models.block(weights, array(call.inputs[0]), causal=cell.causal, **options, **given)
