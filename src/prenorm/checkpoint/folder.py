"""A folder that holds a model: config.json and model.safetensors, in Hugging Face's layout, both ways."""

import functools
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from .files import Content, file_in, read_json, write_together
from .fit import FLOATS, check_fit
from .layouts import (
    config_from_hugging_face,
    config_to_hugging_face,
    eos_from_hugging_face,
    eos_to_hugging_face,
    weights_to_hugging_face,
)
from .names import parameters_of
from .shards import WEIGHTS, find_weights, remove_shards
from .tensors import dtype_name, read_tensors, tensors_content

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"  # transformers' settings for generate(); its end-of-text ids come first

# Stands in config.json and in the weights' metadata: the two were saved together.
SAVE_ID = "prenorm_save_id"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder holds: the model's shape, its tensors under our names, and the ids that end a text."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    eos_token_ids: tuple[int, ...] = ()


def save(
    folder: Path | str, config: ModelConfig, tensors: Mapping[str, Tensor], *, eos_token_ids: tuple[int, ...] = ()
) -> None:
    """Write a model as a folder that `load` opens, and transformers' AutoModelForCausalLM where it knows the family.

    A model that was in the folder stays whole until the new one is on the disk. An interleaved model is written in
    half-split order: it comes back as a half-split model with the same logits.
    Raises CheckpointError when the tensors are not those of the config, and when the disk does not take them.
    """
    folder = Path(folder).expanduser()
    eos_from_hugging_face(list(eos_token_ids), config.vocab_size, source="the model to save")
    found = {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    check_fit(config, found, hugging_face=False, source="the model to save")
    _check_tied_head(config, tensors, "embedding.weight", "the model to save")
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))

    fields = config_to_hugging_face(config, eos_token_ids=eos_token_ids, dtype=dtype)
    fields[SAVE_ID] = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
    # Should a crash fall between two of these, the new weights will not match the old config's id.
    files: dict[Path, Content] = {
        folder / WEIGHTS: tensors_content(weights_to_hugging_face(config, tensors), {SAVE_ID: fields[SAVE_ID]}),
        folder / CONFIG: _encode(fields),
    }
    if (folder / GENERATION_CONFIG).exists():
        files[folder / GENERATION_CONFIG] = _encode(_generation_config(folder, eos_token_ids))
    write_together(files)
    remove_shards(folder)
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
) -> Checkpoint:
    """Read the model in a folder, its tensors in `dtype` (None: as stored) on `device` (None: CPU).

    Headers are compared with the config before anything is allocated. Raises CheckpointError for a folder that is not
    whole, has tensors missing, left over or mis-shaped, or a config that is not understood to the last key.
    """
    if dtype is not None and dtype_name(dtype) not in FLOATS:
        raise ConfigError(f"a model's dtype must be one of {', '.join(FLOATS)}, not {dtype}.")
    try:
        return _load(_model_folder(folder), dtype, device)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error


def _load(folder: Path, dtype: torch.dtype | None, device: torch.device | str | None) -> Checkpoint:
    fields = read_json(file_in(folder, CONFIG))
    config, eos_token_ids = config_from_hugging_face(fields, source=str(folder / CONFIG))
    files = find_weights(folder)
    for path, header in files.items():
        if header.metadata.get(SAVE_ID, fields.get(SAVE_ID)) != fields.get(SAVE_ID):
            raise CheckpointError(
                f"{path} and {CONFIG} must have been saved together, but their {SAVE_ID} differ: one of them was "
                "replaced, or a save was cut off between them; save the model again."
            )
    found = {name: info[:2] for header in files.values() for name, info in header.tensors.items()}
    used = set(check_fit(config, found, hugging_face=True, source=str(folder)))
    stored: dict[str, Tensor] = {}
    for path, header in files.items():
        stored |= read_tensors(path, used & header.tensors.keys(), dtype=dtype, device=device)
    _check_tied_head(config, stored, "model.embed_tokens.weight", str(folder))
    tensors = {parameter.name: stored[parameter.hugging_face] for parameter in parameters_of(config)}
    return Checkpoint(config, tensors, _generation_eos(folder, config, eos_token_ids))


def _model_folder(folder: Path | str) -> Path:
    path, name = Path(folder).expanduser(), str(folder)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the folder that it lies in.")
    if not path.is_dir():
        like_a_hub_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)
        hint = f"; nothing is downloaded, but `hf download {name} --local-dir {path.name}` makes one"
        raise CheckpointError(
            f"{path} must be a folder that holds a model, but there is no such folder{hint if like_a_hub_name else ''}."
        )
    if not (path / CONFIG).exists():
        raise CheckpointError(f"{path} holds no {CONFIG}; a model's folder has {CONFIG} and {WEIGHTS}.")
    return path


def _check_tied_head(config: ModelConfig, tensors: Mapping[str, Tensor], embedding: str, source: str) -> None:
    head = tensors.get("lm_head.weight")
    if config.tie_embeddings and head is not None and not torch.equal(head, tensors[embedding]):
        raise CheckpointError(
            f"{source}: tied embeddings share one tensor, but lm_head.weight differs from {embedding}; "
            "say that they are not tied, or leave lm_head.weight out."
        )


def _generation_eos(folder: Path, config: ModelConfig, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    if not (folder / GENERATION_CONFIG).exists():
        return otherwise
    value = read_json(file_in(folder, GENERATION_CONFIG)).get("eos_token_id")
    if value is None:
        return otherwise
    return eos_from_hugging_face(value, config.vocab_size, source=str(folder / GENERATION_CONFIG))


def _generation_config(folder: Path, eos_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """The generation config that is in the folder, with the end-of-text ids of the model that replaces its owner."""
    try:
        fields = read_json(file_in(folder, GENERATION_CONFIG))
    except CheckpointError:
        fields = {}
    return {**fields, "eos_token_id": eos_to_hugging_face(eos_token_ids)}


def _encode(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
