"""The two files of a model's folder, config.json and the weights: saved together, and opened only as saved together."""

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
from .manifest import MANIFEST, verified, with_manifest
from .shards import WEIGHTS, find_weights, remove_shards
from .tensors import Header, dtype_name, read_tensors, tensors_content

CONFIG = "config.json"

# Stands in config.json and in the weights' metadata: the two were saved together.
SAVE_ID = "prenorm_save_id"

Config = TypeVar("Config")
Found = dict[str, tuple[str, tuple[int, ...]]]  # each tensor's dtype and shape, as a header gives them


@dataclass(frozen=True, slots=True)
class Source:
    """What the files of a folder said of a model beyond its shape, kept to be written again."""

    config: dict[str, Any]
    generation: dict[str, Any] | None
    eos_token_ids: tuple[int, ...]  # that they say together


@dataclass(frozen=True, slots=True)
class Checkpoint(Generic[Config]):
    """What a folder holds: the model's shape, its tensors under our names, and the ids that end a text."""

    config: Config
    tensors: dict[str, Tensor]
    eos_token_ids: tuple[int, ...]
    kind: str | None = None  # "int8" or "int4" where the matrices are whole numbers, as QuantizedLinear holds them
    source: Source | None = None


def write_model(
    folder: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    others: Mapping[Path, Content] | None = None,
) -> None:
    """Write config.json with these fields, the weights, `others`, files that belong to the same save, and a manifest.

    A model that was in the folder stays whole until the new one is on the disk.
    """
    save_id = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
    # Should a crash fall between two of these, the new weights will not match the old config's id, for those who do not
    # know of manifests.
    files: dict[str, Content] = {
        WEIGHTS: tensors_content(tensors, {SAVE_ID: save_id}),
        CONFIG: json_content({**fields, SAVE_ID: save_id}),
        **{path.name: content for path, content in (others or {}).items()},
    }
    # The manifest's name first: whatever a power cut keeps of the others, it is not opened unless it is all of them.
    manifested = {folder / name: content for name, content in with_manifest(files).items()}
    write_together(manifested, first=folder / MANIFEST)
    remove_shards(folder)


def found_among(tensors: Mapping[str, Tensor]) -> Found:
    """What a header would say of these tensors."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


@contextmanager
def opened(folder: Path | str, *, whole: bool = True) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of a model and the fields of its config.json; CheckpointError for all that the disk refuses inside.

    When the context ends, its files are known to be as they were saved; of them config.json alone unless `whole`.
    """
    try:
        path = _model_folder(folder)
        with verified(path, None if whole else {CONFIG}):
            yield path, read_json(file_in(path, CONFIG))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error


class Weights:
    """The weights in an opened folder, of which only headers have been read. They are those of its config.json."""

    def __init__(self, folder: Path, fields: Mapping[str, Any]) -> None:
        self._headers: dict[Path, Header] = find_weights(folder)
        for path, header in self._headers.items():
            if header.metadata.get(SAVE_ID, fields.get(SAVE_ID)) != fields.get(SAVE_ID):
                raise CheckpointError(
                    f"{path} and {CONFIG} must have been saved together, but their {SAVE_ID} differ: one of them was "
                    "replaced, or a save was cut off between them; save the model again."
                )
        self.found: Found = {
            name: info[:2] for header in self._headers.values() for name, info in header.tensors.items()
        }

    def read(self, names: list[str], dtype: torch.dtype | None, device: torch.device | str | None) -> dict[str, Tensor]:
        """The tensors of these names, in `dtype` (None: as stored) on `device` (None: CPU).

        Raises ConfigError for a dtype that a model's weights cannot have.
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
