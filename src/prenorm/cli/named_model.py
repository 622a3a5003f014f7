"""The architecture of a MODEL on the command line: a published model's name, or a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..config import ModelConfig
from ..costs.architecture import Architecture, architecture_of
from ..errors import CheckpointError, ConfigError
from ..published import PUBLISHED
from ..validation import did_you_mean


class NamedModel(NamedTuple):
    """An architecture, the source of its sizes, and its config."""

    architecture: Architecture
    source: str
    config: ModelConfig
    """Of a model that TransformerLM is not: one with its sizes."""


def find_model(name: str) -> NamedModel:
    """The architecture of a published model, or of the model in a folder: a run's, or one in Hugging Face's layout.

    A published name takes precedence; ./gpt2 is a folder of that name.
    Raises ConfigError if it is neither, and CheckpointError for a folder whose model is not understood.
    """
    if published := PUBLISHED.get(name.lower()):
        if published.foreign:
            return NamedModel(Architecture(**published.fields), published.source, _of_its_sizes(published.fields))
        return _named(ModelConfig.from_dict(published.fields), published.source)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that it lies in.")
    if not folder.is_dir():
        raise ConfigError(
            f"MODEL must be a folder with a model, or one of {', '.join(PUBLISHED)}, not {name!r}."
            f"{did_you_mean(name, PUBLISHED)}"
        )
    if (folder / "config.json").is_file():
        return _named(_config_of_model(folder), str(folder / "config.json"))
    if (folder / "config.toml").is_file():
        return _named(config_of_run(folder), str(folder / "config.toml"))
    raise CheckpointError(
        f"{folder} holds no model: a model's folder has config.json, and that of a run which has not ended config.toml."
    )


def _named(config: ModelConfig, source: str) -> NamedModel:
    return NamedModel(architecture_of(config), source, config)


def _of_its_sizes(fields: dict[str, Any]) -> ModelConfig:
    sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len")
    return ModelConfig(**{name: fields[name] for name in sizes})


def _config_of_model(folder: Path) -> ModelConfig:
    """The config in config.json; weights are not read."""
    from ..checkpoint.layouts import config_from_hugging_face  # loads torch, which published names do without
    from ..checkpoint.quantized import kind_in
    from ..checkpoint.together import opened

    with opened(folder, whole=False) as (_, fields, _):
        source = str(folder / "config.json")
        if kind := kind_in(fields, source):
            raise ConfigError(
                f"costs are computed for floating-point matrices, but those in {folder} are {kind}; give the folder "
                "that was quantised."
            )
        return config_from_hugging_face(fields, source=source)[0]


def config_of_run(folder: Path) -> ModelConfig:
    """The model of an unfinished run. Its vocab_size is the tokenizer's, which may be smaller than requested."""
    from ..checkpoint.tokenizer import open_tokenizer
    from ..training.config import TrainConfig, read_toml
    from ..training.tokenizer import vocabulary_size

    config = TrainConfig.from_fields(read_toml(folder / "config.toml"))
    if config.start_from or not (folder / "tokenizer.json").is_file():
        return config.model
    return replace(config.model, vocab_size=vocabulary_size(open_tokenizer(folder)))
