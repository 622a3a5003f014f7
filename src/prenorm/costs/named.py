"""The architecture that a name or a folder stands for."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from ..published import PUBLISHED
from .architecture import Architecture, architecture_of


class Named(NamedTuple):
    """An architecture, and where its numbers are from."""

    model: Architecture
    source: str


def find_model(name: str) -> Named:
    """The architecture of a published model, or of the model in a folder: a run's, or one in Hugging Face's layout.

    Raises ConfigError for what is neither, and CheckpointError for a folder that cannot be understood.
    """
    if published := PUBLISHED.get(name.lower()):
        if published.foreign:
            return Named(Architecture(**published.fields), published.source)
        return Named(architecture_of(ModelConfig.from_dict(published.fields)), published.source)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"MODEL must be a folder with a model or one of {', '.join(PUBLISHED)}, not {name!r}.")
    if (folder / "config.json").is_file():
        return Named(architecture_of(_read_config(folder)), str(folder / "config.json"))
    if (folder / "config.toml").is_file():
        return Named(architecture_of(_read_run(folder)), str(folder / "config.toml"))
    raise CheckpointError(f"{folder} holds no model: it has no config.json, and no config.toml of a run.")


def _read_config(folder: Path) -> ModelConfig:
    """What config.json says; the weights are not looked at."""
    from ..checkpoint.layouts import config_from_hugging_face  # loads torch, which names do without
    from ..checkpoint.quantized import kind_in
    from ..checkpoint.together import opened

    with opened(folder) as (_, fields):
        source = str(folder / "config.json")
        if kind := kind_in(fields, source):
            raise ConfigError(
                f"costs are counted for matrices of floats, but those in {folder} are {kind}; "
                "give the folder that they were rounded from."
            )
        return config_from_hugging_face(fields, source=source)[0]


def _read_run(folder: Path) -> ModelConfig:
    """The model of a run that has not ended. Its vocabulary is its tokenizer's, which may be smaller than asked for."""
    from ..generation.text import load_tokenizer
    from ..training.config import TrainConfig, read_toml
    from ..training.tokenizer import vocabulary_size

    config = TrainConfig.from_fields(read_toml(folder / "config.toml")).model
    if not (folder / "tokenizer.json").is_file():
        return config
    return replace(config, vocab_size=vocabulary_size(load_tokenizer(folder)))
