"""The weight files of a folder: one model.safetensors, or shards listed in an index."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from .files import MAX_JSON_BYTES, file_in, json_text, listed, read_json
from .header import Header, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Far beyond any model's, and read in less than a second.
MAX_SHARDS = 2_000
MAX_TENSORS = 10_000

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def find_weights(folder: Path) -> dict[Path, Header]:
    """The files of a folder's weights, with their headers. Nothing is ever unpickled.

    model.safetensors comes first, as in transformers: it is what the latest save left, should an old index be there.
    Raises CheckpointError when a shard is missing, leads out of the folder, or holds other tensors than indexed.
    """
    names = set(os.listdir(folder))
    if WEIGHTS in names:
        return _headers([file_in(folder, WEIGHTS)])
    if INDEX in names:
        weight_map = _read_index(folder)
        shards = sorted(set(weight_map.values()))
        if len(shards) > MAX_SHARDS:
            raise CheckpointError(f"{folder / INDEX} may list at most {MAX_SHARDS:,} files, but lists {len(shards):,}.")
        missing = [shard for shard in shards if shard not in names and not any(sign in shard for sign in "/\\\0")]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of the {len(shards)} files that {INDEX} lists are missing: "
                f"{listed(missing)}; copy or download them."
            )
        files = _headers([file_in(folder, shard) for shard in shards])
        _check_index(folder, weight_map, files)
        return files
    pickled = sorted(name for name in names if name.endswith(_PICKLES))
    if pickled:
        raise CheckpointError(
            f"{folder}: weights must be in {WEIGHTS}, but there is only {listed(pickled)}. Such files are pickles, "
            "which run code when they are opened. Where you trust them, transformers converts the folder: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(another_folder)."
        )
    others = sorted(name for name in names if name.endswith(".safetensors"))
    hint = f" Of other names there are {listed(others, 5)}: add their index, or give one its name." if others else ""
    raise CheckpointError(f"{folder}: weights must be in {WEIGHTS} or listed in {INDEX}, but neither is there.{hint}")


def _headers(paths: list[Path]) -> dict[Path, Header]:
    """The header of each file. Together they have the size and the tensors of one file at most."""
    headers: dict[Path, Header] = {}
    room, tensors = MAX_JSON_BYTES, 0
    for path in paths:
        headers[path] = header = read_header(path, at_most=room)
        room, tensors = room - header.start, tensors + len(header.tensors)
        if tensors > MAX_TENSORS:
            raise CheckpointError(f"{path.parent}: a model has at most {MAX_TENSORS:,} tensors, but here are more.")
    return headers


def _read_index(folder: Path) -> dict[str, str]:
    index = file_in(folder, INDEX)
    fields = read_json(index)
    weight_map: Any = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must give a file name for each tensor.")
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(
            f"{index}: a model has at most {MAX_TENSORS:,} tensors, but {len(weight_map):,} are listed."
        )
    foreign = sorted({shard for shard in weight_map.values() if not shard.endswith(".safetensors")})
    if foreign:
        raise CheckpointError(f"{index}: shards must be .safetensors files, but it names {listed(foreign)}.")
    metadata = fields.get("metadata", {})
    size = metadata.get("total_size", 0) if isinstance(metadata, dict) else metadata
    if type(size) not in (int, float) or size < 0:  # what it counts differs between tools: tied weights once or twice
        raise CheckpointError(f"{index}: metadata.total_size must be a number of bytes, not {json_text(size)}.")
    return weight_map


def _check_index(folder: Path, weight_map: Mapping[str, str], files: Mapping[Path, Header]) -> None:
    indexed = {(name, shard) for name, shard in weight_map.items()}
    held = {(name, path.name) for path, header in files.items() for name in header.tensors}
    if indexed != held:
        wrong = [f"{name} is not in {shard}" for name, shard in sorted(indexed - held)]
        wrong += [f"{name} in {shard} is not listed" for name, shard in sorted(held - indexed)]
        raise CheckpointError(f"{folder / INDEX} must agree with its files, but {listed(wrong)}.")


def shard_sizes(max_shard_size: int | str | None) -> int | None:
    """The most bytes of tensors in a file, from a number or a text such as "5GB"; None: all in one file.

    Raises ConfigError for anything else.
    """
    if max_shard_size is None:
        return None
    size: float = -1
    if isinstance(max_shard_size, str):
        if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]I?B)?", max_shard_size.strip().upper()):
            size = int(float(match[1]) * _UNITS.get(match[2], 1))
    elif isinstance(max_shard_size, int) and not isinstance(max_shard_size, bool):
        size = max_shard_size
    if size < 1:
        raise ConfigError(
            f'max_shard_size must be a number of bytes or a text such as "5GB" or "500MiB", not {max_shard_size!r}.'
        )
    return int(size)


def shards_of(sizes: Mapping[str, int], most: int | None) -> dict[str, list[str]]:
    """The file that each tensor goes into, from their bytes: in order, until one would have more than `most`.

    A tensor that is larger has a file to itself. One file is called model.safetensors.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if most is not None and groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def index_of(shards: Mapping[str, list[str]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """What model.safetensors.index.json says of these files."""
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    return {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}


def weight_files(folder: Path) -> set[str]:
    """The names of the files that hold the weights of a folder, the index among them, as far as they are in it."""
    found = {name for name in (WEIGHTS, INDEX) if (folder / name).is_file()}
    with suppress(CheckpointError, OSError):
        found |= {file_in(folder, shard).name for shard in set(_read_index(folder).values())}
    return found


def remove_weights(folder: Path, names: set[str]) -> None:
    """Delete files of an earlier save, the index first, so that what is left of a broken removal is no model."""
    with suppress(OSError):
        for name in sorted(names, key=lambda name: name != INDEX):
            (folder / name).unlink(missing_ok=True)
