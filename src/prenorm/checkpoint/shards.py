"""The weight files of a folder: one model.safetensors, or shards listed in an index."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import file_in, read_json
from .tensors import Header, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def find_weights(folder: Path) -> dict[Path, Header]:
    """The files of a folder's weights, with their headers. Nothing is ever unpickled.

    model.safetensors comes first, as in transformers: it is what the latest save left, should an old index be there.
    Raises CheckpointError when a shard is missing, leads out of the folder, or holds other tensors than indexed.
    """
    if (folder / WEIGHTS).exists():
        path = file_in(folder, WEIGHTS)
        return {path: read_header(path)}
    if (folder / INDEX).exists():
        weight_map = _read_index(folder)
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if "/" not in shard and not (folder / shard).exists()]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of the {len(shards)} files that {INDEX} lists are missing: "
                f"{', '.join(missing[:10])}; copy or download them."
            )
        paths = [file_in(folder, shard) for shard in shards]
        files = {path: read_header(path) for path in paths}
        _check_index(folder, weight_map, files)
        return files
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder}: weights must be in {WEIGHTS}, but there is only {', '.join(pickled[:3])}. Such files "
            "are pickles, which run code when they are opened; where you trust them, load the folder with "
            "transformers and call save_pretrained."
        )
    raise CheckpointError(f"{folder}: weights must be in {WEIGHTS} or listed in {INDEX}, but neither is there.")


def _read_index(folder: Path) -> dict[str, str]:
    index = file_in(folder, INDEX)
    weight_map: Any = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must give a file name for each tensor.")
    foreign = sorted({shard for shard in weight_map.values() if not shard.endswith(".safetensors")})
    if foreign:
        raise CheckpointError(f"{index}: shards must be .safetensors files, but it names {', '.join(foreign[:5])}.")
    return weight_map


def _check_index(folder: Path, weight_map: Mapping[str, str], files: Mapping[Path, Header]) -> None:
    listed = {(name, shard) for name, shard in weight_map.items()}
    held = {(name, path.name) for path, header in files.items() for name in header.tensors}
    if listed != held:
        wrong = [f"{name} is not in {shard}" for name, shard in sorted(listed - held)]
        wrong += [f"{name} in {shard} is not listed" for name, shard in sorted(held - listed)]
        more = f", and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise CheckpointError(f"{folder / INDEX} must agree with its files, but {', '.join(wrong[:10])}{more}.")


def remove_shards(folder: Path) -> None:
    """Delete the index and shards of an earlier save, which some programs would read instead of model.safetensors."""
    with suppress(CheckpointError, OSError):
        shards = [file_in(folder, shard) for shard in set(_read_index(folder).values()) if shard != WEIGHTS]
        (folder / INDEX).unlink()
        for shard in shards:
            shard.unlink()
