"""The files of a model folder, config.json and the weights: saved together, and opened only if they belong together."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from .files import Content, file_in, json_content, read_json, write_together
from .fit import FLOATS
from .shards import WEIGHTS, find_weights, remove_shards
from .tensors import Header, dtype_name, read_tensors, tensors_content

CONFIG = "config.json"

# Stored in config.json and in the metadata of the weights, to show that they were saved together.
SAVE_ID = "prenorm_save_id"

Config = TypeVar("Config")
Found = dict[str, tuple[str, tuple[int, ...]]]  # the dtype and shape of each tensor, as in a header


@dataclass(frozen=True, slots=True)
class Source:
    """The contents of a folder's files beyond the model's shape, kept to be written again."""

    config: dict[str, Any]
    generation: dict[str, Any] | None
    eos_token_ids: tuple[int, ...]  # as given by both files


@dataclass(frozen=True, slots=True)
class Checkpoint(Generic[Config]):
    """The model in a folder: its config, its tensors under prenorm's names, and the ids that end a text."""

    config: Config
    tensors: dict[str, Tensor]
    eos_token_ids: tuple[int, ...]
    kind: str | None = None  # "int8" or "int4" if the matrices are quantised, in the format of QuantizedLinear
    source: Source | None = None


def write_model(
    folder: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    others: Mapping[Path, Content] | None = None,
) -> None:
    """Write config.json with these fields, the weights, and `others`, files that belong to the same save.

    A model that was in the folder stays whole until the new one is on the disk.
    """
    save_id = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
    # After a crash between the two, the id in the new weights does not match the one in the old config.
    files: dict[Path, Content] = {
        folder / WEIGHTS: tensors_content(tensors, {SAVE_ID: save_id}),
        folder / CONFIG: json_content({**fields, SAVE_ID: save_id}),
    }
    write_together(files | dict(others or {}))
    remove_shards(folder)


def found_among(tensors: Mapping[str, Tensor]) -> Found:
    """The dtypes and shapes of these tensors, as in a header."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


@contextmanager
def opened(folder: Path | str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of a model and the fields of its config.json; CheckpointError for all that the disk refuses inside."""
    try:
        path = _model_folder(folder)
        yield path, read_json(file_in(path, CONFIG))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error


class Weights:
    """The weights in an opened folder, checked to belong to its config.json; only headers are read at first."""

    def __init__(self, folder: Path, fields: Mapping[str, Any]) -> None:
        self._headers: dict[Path, Header] = find_weights(folder)
        for path, header in self._headers.items():
            if header.metadata.get(SAVE_ID, fields.get(SAVE_ID)) != fields.get(SAVE_ID):
                raise CheckpointError(
                    f"{path} and {CONFIG} must have been saved together, but their {SAVE_ID} differ: one of them was "
                    "replaced, or a save was interrupted between them; save the model again."
                )
        self.found: Found = {
            name: info[:2] for header in self._headers.values() for name, info in header.tensors.items()
        }

    def read(self, names: list[str], dtype: torch.dtype | None, device: torch.device | str | None) -> dict[str, Tensor]:
        """The tensors of these names, in `dtype` (None: as stored) on `device` (None: CPU).

        Raises ConfigError for a dtype that weights cannot have.
        """
        if dtype is not None and dtype_name(dtype) not in FLOATS:
            raise ConfigError(f"a model's dtype must be one of {', '.join(FLOATS)}, not {dtype}.")
        tensors: dict[str, Tensor] = {}
        for path, header in self._headers.items():
            tensors |= read_tensors(path, set(names) & header.tensors.keys(), dtype=dtype, device=device)
        return tensors


def _model_folder(folder: Path | str) -> Path:
    path, name = Path(folder).expanduser(), str(folder)
    if path.is_file():
        raise CheckpointError(f"{path} must be a folder, but it is a file; give the folder that contains it.")
    if not path.is_dir():
        like_a_hub_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)
        hint = f"; nothing is downloaded, but `hf download {name} --local-dir {path.name}` makes one"
        raise CheckpointError(
            f"{path} must be the folder of a model, but there is no such folder{hint if like_a_hub_name else ''}."
        )
    if not (path / CONFIG).exists():
        raise CheckpointError(f"a model folder must have {CONFIG} and {WEIGHTS}, but {path} has no {CONFIG}.")
    return path
