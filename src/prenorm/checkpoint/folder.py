"""The folder of a language model, read and written in Hugging Face's layout: config.json and model.safetensors."""

import functools
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from .files import Content, file_in, json_content, read_json
from .fit import FLOATS, check_fit
from .generation_config import GENERATION_CONFIG, read_generation_config
from .header import DTYPES
from .layouts import (
    LAYOUTS,
    OURS,
    config_from_hugging_face,
    eos_from_hugging_face,
    eos_to_hugging_face,
    own_eos,
)
from .names import PACKED, SCALES, SHAPE, parameters_of
from .quantized import KEY, from_rows, kind_in, quantization_config, to_rows
from .stored import kept_as_stored
from .together import CONFIG, SAVE_ID, Checkpoint, Source, Weights, found_among, opened, write_model
from .tokenizer_files import read_tokenizer_files, remove_tokenizer_files
from .writing import (
    config_as_it_came,
    config_to_hugging_face,
    naming_among,
    naming_of,
    weights_from_hugging_face,
    weights_to_hugging_face,
)


def save(
    folder: Path | str,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    eos_token_ids: tuple[int, ...] = (),
    kind: str | None = None,
    came_from: Source | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a model as a folder that `load` opens, and transformers' AutoModelForCausalLM where it knows the family.

    came_from: what the folder that it was loaded from said; it is written again where it still holds, and the files of
    its tokenizer with it, which take the place of another tokenizer's.
    max_shard_size: the most bytes of tensors in a file, a number or a text such as "5GB"; None: all in one.
    A model that was in the folder stays whole until the new one is on the disk. An interleaved model is written in
    half-split order, unless its family has it interleaved: it comes back as a model with the same logits.
    Raises CheckpointError when the tensors are not those of the config, and when the disk does not take them.
    """
    folder = Path(folder).expanduser()
    eos_from_hugging_face(list(eos_token_ids), config.vocab_size, source="the model to save", key="eos_token_ids")
    if kind is not None:
        tensors = to_rows(config, kind, tensors)
    check_fit(config, found_among(tensors), hugging_face=False, source="the model to save", kind=kind)
    _check_tied_head(config, tensors, "lm_head.weight", "embedding.weight", "the model to save", "tie_embeddings=False")
    floats = (
        tensor.dtype for name, tensor in tensors.items() if tensor.is_floating_point() and not name.endswith(SCALES)
    )
    dtype = functools.reduce(torch.promote_types, floats)
    fields = _fields(config, eos_token_ids, dtype, kind, came_from)
    as_it_came = came_from is not None and fields["model_type"] == came_from.config["model_type"]
    number = came_from.naming if came_from is not None and as_it_came else 0
    weights = weights_to_hugging_face(config, tensors, fields, kind, number)
    if kind is not None:
        fields[KEY] = quantization_config(kind)
    others: dict[Path, Content] = {}
    generation = None if came_from is None else came_from.generation
    if generation is not None or (folder / GENERATION_CONFIG).exists():
        settings = _generation_config(folder, generation, eos_token_ids)
        others[folder / GENERATION_CONFIG] = json_content(settings)
    # In the folder itself they may have been changed since.
    tokenizer = {} if came_from is None or came_from.folder == folder.resolve() else came_from.tokenizer
    others |= {folder / name: content for name, content in tokenizer.items()}
    write_model(folder, fields, weights, others, max_shard_size=max_shard_size)
    if tokenizer:
        remove_tokenizer_files(folder, but=tokenizer)
    if fields["model_type"] == OURS:
        # Last, so that the model is saved even if warnings are errors.
        warnings.warn(
            f"{folder} was saved as model_type 'prenorm', which prenorm can open but transformers cannot: no family in "
            f"transformers combines qk_norm={config.qk_norm}, qkv_bias={config.qkv_bias}, o_bias={config.o_bias}, "
            f"window={config.window}{_and_record(config)}.",
            stacklevel=2,
        )


def _and_record(config: ModelConfig) -> str:
    return "" if config.family is None else f", or none that was loaded has {config.family}"


def _fields(
    config: ModelConfig,
    eos_token_ids: tuple[int, ...],
    dtype: torch.dtype,
    kind: str | None,
    came_from: Source | None,
) -> dict[str, Any]:
    """The fields of config.json: those that the model was loaded with if still valid, otherwise new ones."""
    if came_from is not None and (kind is None or LAYOUTS[came_from.config["model_type"]].naming.keeps_matrices):
        changed = None if came_from.eos_token_ids == eos_token_ids else eos_token_ids
        fields = config_as_it_came(came_from.config, config, changed, dtype)
        if fields is not None:
            return fields
    return config_to_hugging_face(config, eos_token_ids=eos_token_ids, dtype=dtype, kind=kind)


def load(
    folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Checkpoint[ModelConfig]:
    """Read the model in a folder, its tensors in `dtype` (None: as stored) on `device` (None: CPU).

    Matrices and biases that are stored in several dtypes cannot be multiplied as they are: they and the norms then have
    the dtype that config.json names, as in transformers, or the widest of theirs.
    Headers are compared with the config before anything is allocated. Raises CheckpointError for an incomplete folder,
    for tensors that are missing, unexpected or of the wrong shape, and for a config that is not fully understood.
    """
    with opened(folder) as (path, fields, verification):
        source = str(path / CONFIG)
        kind = kind_in(fields, source)
        own = {key: value for key, value in fields.items() if key not in (KEY, SAVE_ID)}
        config, eos_token_ids = config_from_hugging_face(own, source=source)
        layout = LAYOUTS[own["model_type"]]
        generation = read_generation_config(path)
        if generation is not None and generation.get("eos_token_id") is not None:
            ids = own_eos(generation["eos_token_id"], layout, config.vocab_size)
            eos_token_ids = eos_from_hugging_face(ids, config.vocab_size, source=str(path / GENERATION_CONFIG))
        weights = Weights(path, fields)
        number = naming_among(layout, weights.found, tied=config.tie_embeddings)
        came_from = Source(path.resolve(), own, generation, eos_token_ids, read_tokenizer_files(path), number)
        naming = naming_of(layout, kind, number)
        used = check_fit(config, weights.found, hugging_face=True, source=str(path), kind=kind, naming=naming)
        if dtype is None and kind is None:
            norms = {one.hugging_face for one in parameters_of(config, kind, naming) if "norm" in one.name}
            dtype = _dtype_of_all({weights.found[name][0] for name in used if name not in norms}, own)
        whole = [name for name in used if name.endswith((PACKED, SCALES, SHAPE))]
        stored = weights.read(whole, None, device, verification)
        as_stored = kept_as_stored(parameters_of(config, kind, naming))
        stored |= weights.read(sorted({*used} - {*whole}), dtype, device, verification, as_stored=as_stored)
        head, embedding = (f"{naming.outside[part]}.weight" for part in ("lm_head", "embedding"))
        _check_tied_head(config, stored, head, embedding, str(path), '"tie_word_embeddings": false')
        tensors = weights_from_hugging_face(config, stored, kind, naming)
        if kind is not None:
            tensors = from_rows(config, kind, tensors, str(path))
        return Checkpoint(config, tensors, eos_token_ids, kind, came_from, weights.mapped)


def _dtype_of_all(stored: set[str], fields: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of all weights; None where those that are multiplied have one already."""
    if len(stored) == 1:
        return None
    named = fields.get("dtype") or fields.get("torch_dtype")
    given = [DTYPES[name] for name in FLOATS if str(DTYPES[name]) == f"torch.{named}"]
    return given[0] if given else functools.reduce(torch.promote_types, (DTYPES[name] for name in stored))


def _check_tied_head(
    config: ModelConfig, tensors: Mapping[str, Tensor], name: str, embedding: str, source: str, untied: str
) -> None:
    head = None if name == embedding else tensors.get(name)
    if config.tie_embeddings and head is not None and not torch.equal(head, tensors[embedding]):
        raise CheckpointError(
            f"{source}: tied embeddings share one tensor, but {name} differs from {embedding}; "
            f"{untied} says that they are not tied, or leave {name} out."
        )


def _generation_config(folder: Path, given: dict[str, Any] | None, eos_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """The generation config that the model was loaded with, or that is in the folder, with its end-of-text ids."""
    fields = {} if given is None else given
    if given is None:
        with suppress(CheckpointError):
            fields = read_json(file_in(folder, GENERATION_CONFIG))
    return {**fields, "eos_token_id": eos_to_hugging_face(eos_token_ids)}
