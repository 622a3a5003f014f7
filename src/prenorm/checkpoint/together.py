"""The files of a model folder, config.json and the weights: saved together, and opened only if they belong together."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from .files import Content, file_in, json_content, read_json, write_together
from .fit import FLOATS
from .header import DTYPES, Header, dtype_name
from .manifest import MANIFEST, with_manifest
from .mapped import Versions
from .room import check_disk, check_memory
from .shards import INDEX, WEIGHTS, find_weights, index_of, remove_weights, shard_sizes, shards_of, weight_files
from .tensors import bytes_of, is_converted, read_tensors, tensors_content
from .verified import Verification, verified

CONFIG = "config.json"
ADAPTER = "adapter_config.json"  # of peft; transformers then opens the model that it names, and not the one beside it

# Stored in config.json and in the metadata of the weights, to show that they were saved together.
SAVE_ID = "prenorm_save_id"

Config = TypeVar("Config")
Found = dict[str, tuple[str, tuple[int, ...]]]  # the dtype and shape of each tensor, as in a header


@dataclass(frozen=True, slots=True)
class Source:
    """The contents of a folder's files beyond the model's shape, kept to be written again."""

    folder: Path
    config: dict[str, Any]
    generation: dict[str, Any] | None
    eos_token_ids: tuple[int, ...]  # as given by both files
    tokenizer: dict[str, bytes]  # the files of its tokenizer, by name
    naming: int = 0  # which of its family's names its tensors have: `Layout.namings`


@dataclass(frozen=True, slots=True)
class Checkpoint(Generic[Config]):
    """The model in a folder: its config, its tensors under prenorm's names, and the ids that end a text."""

    config: Config
    tensors: dict[str, Tensor]
    eos_token_ids: tuple[int, ...]
    kind: str | None = None  # "int8" or "int4" if the matrices are quantised, in the format of QuantizedLinear
    source: Source | None = None
    mapped: Versions = field(default_factory=dict)  # the files that tensors are views of


def write_model(
    folder: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    others: Mapping[Path, Content] | None = None,
    *,
    max_shard_size: int | str | None = None,
) -> None:
    """Write config.json with these fields, the weights, `others`, files that belong to the same save, and a manifest.

    max_shard_size: the most bytes of tensors in a file, a number or a text such as "5GB"; None: all in one.
    A model that was in the folder stays whole until the new one is on the disk.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    shards = shards_of(sizes, shard_sizes(max_shard_size))
    check_disk(sum(sizes.values()), folder)
    digest = hashlib.sha256(json.dumps(fields).encode())
    if len(shards) > 1:
        # Shards take their names one by one. A crash between two must show, also where the config is the same.
        for name in tensors:
            digest.update(bytes_of(tensors[name]))
    save_id = digest.hexdigest()[:16]
    before = weight_files(folder)
    # Should a crash fall between two of these, the new weights will not match the old config's id, for those who do not
    # know of manifests.
    files: dict[str, Content] = {
        shard: tensors_content({name: tensors[name] for name in names}, {SAVE_ID: save_id})
        for shard, names in shards.items()
    }
    if len(shards) > 1:
        files[INDEX] = json_content(index_of(shards, sizes))
    files[CONFIG] = json_content({**fields, SAVE_ID: save_id})
    files |= {path.relative_to(folder).as_posix(): content for path, content in (others or {}).items()}
    # The manifest's name first: whatever a power cut keeps of the others, it is not opened unless it is all of them.
    manifested = {folder / name: content for name, content in with_manifest(files).items()}
    write_together(manifested, first=folder / MANIFEST)
    remove_weights(folder, before - set(files))


def found_among(tensors: Mapping[str, Tensor]) -> Found:
    """The dtypes and shapes of these tensors, as in a header."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


@contextmanager
def opened(folder: Path | str, *, whole: bool = True) -> Iterator[tuple[Path, dict[str, Any], Verification]]:
    """The folder of a model, the fields of its config.json, and the comparison of its files with its manifest.

    When the context ends, its files are known to be as they were saved; of them config.json alone unless `whole`.
    Inside, whatever the disk refuses is a CheckpointError.
    """
    try:
        path = _model_folder(folder)
        with verified(path, None if whole else {CONFIG}) as verification:
            yield path, read_json(file_in(path, CONFIG)), verification
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error


class Weights:
    """The weights in an opened folder, checked to belong to its config.json; only headers are read at first."""

    def __init__(self, folder: Path, fields: Mapping[str, Any]) -> None:
        self._folder = folder
        self.mapped: dict[Path, tuple[int, ...]] = {}  # the versions of files that tensors are views of
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

    def files(self) -> dict[str, int]:
        """The files that hold them, and the bytes of tensors in each."""
        return {
            path.name: max((info.end for info in header.tensors.values()), default=0)
            for path, header in self._headers.items()
        }

    def read(
        self,
        names: list[str],
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        verification: Verification,
        *,
        as_stored: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """The tensors of these names, in `dtype` (None: as stored) on `device` (None: CPU).

        verification: of their files; those that are mostly converted are compared while that is done.
        as_stored: those that nobody takes apart, so that they may be views of a large file (mapped.py).
        Raises ConfigError for a dtype that weights cannot have.
        """
        if dtype is not None and dtype_name(dtype) not in FLOATS:
            raise ConfigError(f"a model's dtype must be one of {', '.join(FLOATS)}, not {dtype}.")
        sizes = (
            math.prod(shape) * (dtype or DTYPES[stored]).itemsize
            for stored, shape in (self.found[name] for name in names)
        )
        check_memory(sum(sizes), device, str(self._folder))
        tensors: dict[str, Tensor] = {}
        for path, header in self._headers.items():
            if not (here := [name for name in names if name in header.tensors]):
                continue
            kept, others = ([name for name in here if (name in as_stored) is one] for one in (True, False))
            infos = (header.tensors[name] for name in here)
            converted = sum(info.end - info.begin for info in infos if is_converted(info, dtype, device))
            blocks = verification.blocks_of(path.name) if 2 * converted > header.version[2] else None
            if blocks is None:
                verification.start([path.name])
            given: dict[str, Any] = {"header": header, "dtype": dtype, "device": device, "blocks": blocks}
            tensors |= read_tensors(path, kept, **given, mapped=self.mapped)
            tensors |= read_tensors(path, others, **given)
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
    if (path / ADAPTER).exists():
        raise CheckpointError(
            f"a model folder must hold all of a model, but {path} holds an adapter ({ADAPTER}), which prenorm does not "
            "apply; merge it into its model (in peft: merge_and_unload(), then save_pretrained), or, where it is not "
            f"meant, take {ADAPTER} away."
        )
    if not (path / CONFIG).exists():
        snapshots = path / "snapshots"
        hint = f"; {snapshots} holds such folders, one for each version" if snapshots.is_dir() else ""
        raise CheckpointError(f"a model folder must have {CONFIG} and {WEIGHTS}, but {path} has no {CONFIG}{hint}.")
    return path
