"""A folder that holds a model: config.json and model.safetensors, in Hugging Face's layout, both ways."""

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from .files import Content, file_in, json_content, read_json
from .fit import check_fit
from .layouts import (
    config_from_hugging_face,
    config_to_hugging_face,
    eos_from_hugging_face,
    eos_to_hugging_face,
    weights_to_hugging_face,
)
from .names import PACKED, SCALES, SHAPE, parameters_of
from .quantized import KEY, from_rows, kind_in, quantization_config, to_rows
from .together import CONFIG, Checkpoint, Weights, found_among, opened, write_model

GENERATION_CONFIG = "generation_config.json"  # transformers' settings for generate(); its end-of-text ids come first


def save(
    folder: Path | str,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    eos_token_ids: tuple[int, ...] = (),
    kind: str | None = None,
) -> None:
    """Write a model as a folder that `load` opens, and transformers' AutoModelForCausalLM where it knows the family.

    A model that was in the folder stays whole until the new one is on the disk. An interleaved model is written in
    half-split order: it comes back as a half-split model with the same logits.
    Raises CheckpointError when the tensors are not those of the config, and when the disk does not take them.
    """
    folder = Path(folder).expanduser()
    eos_from_hugging_face(list(eos_token_ids), config.vocab_size, source="the model to save", key="eos_token_ids")
    if kind is not None:
        tensors = to_rows(config, kind, tensors)
    check_fit(config, found_among(tensors), hugging_face=False, source="the model to save", kind=kind)
    _check_tied_head(config, tensors, "embedding.weight", "the model to save", "tie_embeddings=False")
    floats = (
        tensor.dtype for name, tensor in tensors.items() if tensor.is_floating_point() and not name.endswith(SCALES)
    )
    dtype = functools.reduce(torch.promote_types, floats)
    fields = config_to_hugging_face(config, eos_token_ids=eos_token_ids, dtype=dtype)
    if kind is not None:
        fields[KEY] = quantization_config(kind)
    others: dict[Path, Content] = {}
    if (folder / GENERATION_CONFIG).exists():
        others[folder / GENERATION_CONFIG] = json_content(_generation_config(folder, eos_token_ids))
    write_model(folder, fields, weights_to_hugging_face(config, tensors, kind), others)
    if fields["model_type"] == "prenorm":
        # Last, so that a program that turns warnings into errors has its model all the same.
        warnings.warn(
            f"{folder} was saved as model_type 'prenorm', which prenorm opens and transformers does not: no family of "
            f"theirs has qk_norm={config.qk_norm}, qkv_bias={config.qkv_bias}, o_bias={config.o_bias}, "
            f"window={config.window} together.",
            stacklevel=2,
        )


def load(
    folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Checkpoint[ModelConfig]:
    """Read the model in a folder, its tensors in `dtype` (None: as stored) on `device` (None: CPU).

    Headers are compared with the config before anything is allocated. Raises CheckpointError for a folder that is not
    whole, has tensors missing, left over or mis-shaped, or a config that is not understood to the last key.
    """
    with opened(folder) as (path, fields):
        source = str(path / CONFIG)
        kind = kind_in(fields, source)
        config, eos_token_ids = config_from_hugging_face(
            {key: value for key, value in fields.items() if key != KEY}, source=source
        )
        weights = Weights(path, fields)
        used = check_fit(config, weights.found, hugging_face=True, source=str(path), kind=kind)
        whole = [name for name in used if name.endswith((PACKED, SCALES, SHAPE))]
        stored = weights.read(whole, None, device) | weights.read(sorted({*used} - {*whole}), dtype, device)
        _check_tied_head(config, stored, "model.embed_tokens.weight", str(path), '"tie_word_embeddings": false')
        tensors = {parameter.name: stored[parameter.hugging_face] for parameter in parameters_of(config, kind)}
        if kind is not None:
            tensors = from_rows(config, kind, tensors, str(path))
        return Checkpoint(config, tensors, _generation_eos(path, config, eos_token_ids), kind)


def _check_tied_head(
    config: ModelConfig, tensors: Mapping[str, Tensor], embedding: str, source: str, untied: str
) -> None:
    head = tensors.get("lm_head.weight")
    if config.tie_embeddings and head is not None and not torch.equal(head, tensors[embedding]):
        raise CheckpointError(
            f"{source}: tied embeddings share one tensor, but lm_head.weight differs from {embedding}; "
            f"{untied} says that they are not tied, or leave lm_head.weight out."
        )


def _generation_eos(folder: Path, config: ModelConfig, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    path = folder / GENERATION_CONFIG
    value = read_json(file_in(folder, path.name)).get("eos_token_id") if path.exists() else None
    return otherwise if value is None else eos_from_hugging_face(value, config.vocab_size, source=str(path))


def _generation_config(folder: Path, eos_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """The generation config that is in the folder, with the end-of-text ids of the model that replaces its owner."""
    try:
        fields = read_json(file_in(folder, GENERATION_CONFIG))
    except CheckpointError:
        fields = {}
    return {**fields, "eos_token_id": eos_to_hugging_face(eos_token_ids)}
