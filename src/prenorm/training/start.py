"""Going on from a trained model: the settings that follow from its folder, and its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ..checkpoint.layouts import config_from_hugging_face
from ..checkpoint.quantized import KEY, kind_in
from ..checkpoint.together import CONFIG, SAVE_ID, opened
from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from ..layers.quantized import kind_of
from ..models.lm import TransformerLM
from .config import MODEL_FIELDS, RUN_FIELDS, TrainConfig
from .config_checks import check_choice
from .presets import PRESETS, PresetName
from .tokenizer import end_of_text, start_of_text
from .twin import twin_of

PRESET = "finetune"  # unless another is named


def start_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, one of which is start_from, with those that follow from that folder.

    The sizes and the tokenizer are the folder's, the context is at most the longest that the model takes. Dropout is
    the run's own choice.
    Raises CheckpointError for a folder that does not open, and ConfigError for settings that contradict it.
    """
    preset = given.get("preset", PRESET)
    check_choice("preset", preset, PresetName)
    folder = Path(given["start_from"]).expanduser()
    model, tokenizer = _config_in(folder), str(folder / "tokenizer.json")
    sizes = {name: value for name, value in model.to_dict().items() if name != "dropout"}
    asked = {name: value for name, value in given.items() if name in sizes}
    _check_sizes(model, ModelConfig.from_dict({**sizes, **asked}), folder)
    if given.get("tokenizer", tokenizer) != tokenizer:
        raise ConfigError(
            f"a model goes on with its own tokenizer, {tokenizer}, but tokenizer is {given['tokenizer']}; leave it out."
        )
    if not Path(tokenizer).is_file():
        raise CheckpointError(
            f"a model goes on with its own tokenizer, but {folder} has no tokenizer.json; copy the model's there."
        )
    usual = PRESETS[preset].get("context", RUN_FIELDS["context"].default)
    context = given.get("context", min(usual, model.max_seq_len))
    return {**given, "preset": preset, "context": context, "tokenizer": tokenizer, **sizes}


def starting_model(
    config: TrainConfig, tokenizer: Tokenizer, end_ids: Sequence[int], *, dtype: torch.dtype | None = torch.float32
) -> TransformerLM:
    """The model in the folder `start_from`, with the run's dropout; `end_ids` end its texts, too.

    dtype: of its weights; None for that of the files, of which large ones are mapped and not read.
    Raises CheckpointError for a folder that does not open, and ConfigError for one whose model is not that of the
    settings, or cannot be trained.
    """
    folder = Path(config.start_from).expanduser()
    loaded = TransformerLM.from_pretrained(folder, dtype=dtype)
    _check_trainable(kind_of(loaded), folder)
    _check_sizes(loaded.config, config.model, folder)
    _check_vocabulary(tokenizer, loaded.config.vocab_size, folder)
    model = twin_of(loaded, config.model)
    model.eos_token_ids = tuple(dict.fromkeys((*loaded.eos_token_ids, *end_ids)))
    if loaded.came_from is not None:  # whose tokenizer is the run's own, and written with it
        model.came_from = replace(loaded.came_from, folder=folder.resolve(), tokenizer={})
    return model


def _config_in(folder: Path) -> ModelConfig:
    with opened(folder, whole=False) as (path, fields, _):  # the weights are checked where they are read
        source = str(path / CONFIG)
        _check_trainable(kind_in(fields, source), folder)
        own = {key: value for key, value in fields.items() if key not in (KEY, SAVE_ID)}
        return config_from_hugging_face(own, source=source)[0]


def _check_trainable(kind: str | None, folder: Path) -> None:
    if kind is not None:
        raise ConfigError(
            f"only a model in floats can be trained, but the matrices in {folder} are {kind}; go on from the folder "
            "that they were rounded from."
        )


def _check_sizes(model: ModelConfig, asked: ModelConfig, folder: Path) -> None:
    other = [
        f"{name} is {getattr(model, name)!r} there and {getattr(asked, name)!r} here"
        for name in MODEL_FIELDS
        if name != "dropout" and getattr(model, name) != getattr(asked, name)
    ]
    if other:
        raise ConfigError(f"a run has the sizes of the model in {folder} that it goes on from, but {', '.join(other)}.")


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    """Every token that a text may become must be one of the model's. Special tokens are never read from a text."""
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    foreign = sorted(id for id in vocabulary.values() if id >= vocab_size and id not in special)
    foreign += [id for _, id in (start_of_text(tokenizer), end_of_text(tokenizer)) if id >= vocab_size]
    if foreign:
        raise CheckpointError(
            f"the tokenizer in {folder} must fit its model of {vocab_size:,} tokens, but has the id {foreign[-1]:,}; "
            "copy the files of one model there."
        )
