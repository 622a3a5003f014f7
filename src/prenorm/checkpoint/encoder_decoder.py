"""The folder of an encoder-decoder: config.json, and the weights under prenorm's own names."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import EncoderDecoderConfig, check_encoder_decoder
from ..errors import CheckpointError, ConfigError
from .files import IN_THE_FILE, json_text, name_text, phrases
from .fit import check_layers, check_tensors
from .layouts import ENCODER_DECODER, eos_from_hugging_face
from .together import CONFIG, SAVE_ID, Checkpoint, Weights, found_among, opened, write_model

_FIELDS = frozenset(field.name for field in dataclasses.fields(EncoderDecoderConfig))


def save(
    folder: Path | str,
    config: EncoderDecoderConfig,
    tensors: Mapping[str, Tensor],
    eos_token_ids: tuple[int, ...],
    max_shard_size: int | str | None = None,
) -> None:
    """Write a model as a folder that `load` opens.

    max_shard_size: the most bytes of tensors in a file, a number or a text such as "5GB"; None: all in one.
    A model already in the folder stays intact until the new one is on disk.
    Raises CheckpointError when the tensors do not match the config, and when the disk cannot store them.
    """
    source = "the model to save"
    eos_from_hugging_face(list(eos_token_ids), config.target_vocab_size, source=source, key="eos_token_ids")
    check_tensors(dict(parameters_of(config)), found_among(tensors), source)
    fields = {"model_type": ENCODER_DECODER, **config.to_dict(), "eos_token_ids": list(eos_token_ids)}
    write_model(Path(folder).expanduser(), fields, tensors, max_shard_size=max_shard_size)


def load(
    folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Checkpoint[EncoderDecoderConfig]:
    """Read the model in a folder, its tensors in `dtype` (None: as stored) on `device` (None: CPU).

    Headers are compared with the config before anything is allocated. Raises CheckpointError for an incomplete folder,
    for tensors that are missing, unexpected or of the wrong shape, and for a config that is not fully understood.
    """
    with opened(folder) as (path, fields, verification):
        config, eos_token_ids = read_config(fields, str(path / CONFIG))
        weights = Weights(path, fields)
        check_layers(config.num_layers + config.num_decoder_layers, weights.found, str(path))
        names = check_tensors(dict(parameters_of(config)), weights.found, str(path))
        return Checkpoint(config, weights.read(names, dtype, device, verification), eos_token_ids)


def read_config(fields: Mapping[str, Any], source: str) -> tuple[EncoderDecoderConfig, tuple[int, ...]]:
    """What config.json says: the model, and the ids that end a text. Raises CheckpointError."""
    model_type = fields.get("model_type")
    if model_type != ENCODER_DECODER:
        raise CheckpointError(
            f"{source}: model_type must be {ENCODER_DECODER} for an EncoderDecoder, not {json_text(model_type)}; "
            "folders of language models are opened by TransformerLM.from_pretrained."
        )
    wanted = {*_FIELDS, "model_type", "eos_token_ids"}
    problems = [f"{key} is missing" for key in sorted(wanted - fields.keys())]
    problems += [f"{name_text(key)} is not known" for key in sorted(fields.keys() - wanted - {SAVE_ID})]
    if problems:
        raise CheckpointError(f"{source} must be understood as a whole, but {phrases(problems)}.")
    own = {key: fields[key] for key in _FIELDS}
    try:
        check_encoder_decoder(own, IN_THE_FILE)
        config = EncoderDecoderConfig.from_dict(own)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    eos = eos_from_hugging_face(fields["eos_token_ids"], config.target_vocab_size, source=source, key="eos_token_ids")
    return config, eos


def parameters_of(config: EncoderDecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor of a model with this config."""
    d_model = config.d_model
    yield "embedding.weight", (config.vocab_size, d_model)
    if not config.tie_embeddings:
        yield "target_embedding.weight", (config.target_vocab_size, d_model)
        yield "lm_head.weight", (config.target_vocab_size, d_model)
    if config.positions == "learned":
        for side in ("source", "target"):
            yield f"{side}_positions.embedding.weight", (config.max_seq_len, d_model)
    stacks = {
        "encoder": (config.num_layers, ("norm1", "norm2"), ("attn",)),
        "decoder": (config.num_decoder_layers, ("norm1", "norm2", "norm3"), ("self_attn", "cross_attn")),
    }
    for stack, (num_layers, norms, attentions) in stacks.items():
        for layer in range(num_layers):
            for norm in norms:
                yield from _weight_and_bias(f"{stack}.layers.{layer}.{norm}", d_model)
            for attention in attentions:
                for part in "qkvo":
                    yield from _weight_and_bias(f"{stack}.layers.{layer}.{attention}.{part}_proj", d_model, d_model)
            yield from _weight_and_bias(f"{stack}.layers.{layer}.ffn.up_proj", config.d_ff, d_model)
            yield from _weight_and_bias(f"{stack}.layers.{layer}.ffn.down_proj", d_model, config.d_ff)
        yield from _weight_and_bias(f"{stack}.final_norm", d_model)


def _weight_and_bias(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
