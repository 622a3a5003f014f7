"""The folder of an experiment: every measured cell is in it as soon as it is there, so that a stopped one goes on."""

import dataclasses
import functools
import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ..checkpoint.files import json_content, parse_json, read_json, write_atomically
from ..errors import CheckpointError, ConfigError
from ..locks import lock

Record = dict[str, Any]


@runtime_checkable
class Cell(Protocol):
    """One measurement: a frozen record of all that its numbers depend on.

    cost: about how long it takes, in any unit that is the same for all cells of a sweep.
    """

    def __hash__(self) -> int: ...

    @property
    def cost(self) -> float: ...

    def measure(self) -> Record:
        """Do it, in a process with one thread. The result can be written as JSON."""
        ...


class Cells:
    """The results so far, by cell: in memory, and in cells.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = dict(_read(path))
        write_atomically(path, b"".join(_line(json.loads(key), result) for key, result in self._results.items()))
        self._file = path.open("ab")

    def get(self, cell: Cell) -> Record | None:
        """What was measured for this cell, if it was."""
        return self._results.get(_key(cell))

    def add(self, cell: Cell, result: Record) -> None:
        """Keep a result; it survives the death of the process."""
        self._results[_key(cell)] = result
        try:
            self._file.write(_line(_fields(cell), result))
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self.path} could not be written: {error.strerror}; make room, and give the same command again."
            ) from error

    def close(self) -> None:
        self._file.close()


@contextmanager
def open_folder(folder: Path, experiment: str, *, text: str | None = None) -> Iterator[Cells]:
    """Holds the folder of an experiment for this process alone. Cells that other versions measured are refused.

    text: the digest of what is trained on. Raises ConfigError for a folder of anything else, and CheckpointError for
    one that cannot be read or written.
    """
    conditions = {"experiment": experiment, **environment(), "text": text}
    _check(folder, conditions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}; choose another --out.") from error
    with _alone(folder):
        _check(folder, conditions)
        write_atomically(folder / "lab.json", json_content(conditions))
        cells = Cells(folder / "cells.jsonl")
        try:
            yield cells
        finally:
            cells.close()


def environment() -> dict[str, str]:
    """What numbers depend on beside the cell: the same on another day give the same numbers."""
    return {
        "prenorm": version("prenorm"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _check(folder: Path, conditions: dict[str, str | None]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out must be a folder, but {folder} is a file; choose another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "lab.json").is_file():
        raise ConfigError(f"out must be a new folder or the lab's, but {folder} holds other things; choose another.")
    before = read_json(folder / "lab.json")
    changed = [
        f"{name} is {before.get(name)!r} there and {now!r} here"
        for name, now in conditions.items()
        if before.get(name) != now
    ]
    if changed:
        raise ConfigError(
            f"the cells in {folder} were measured under other conditions: {', '.join(changed)}; choose another --out."
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A lock on the folder that ends with this process."""
    with ExitStack() as stack:
        if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                lock(descriptor, wait=False)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another process is measuring in {folder}; wait for it, or choose another --out."
                ) from error
            except OSError:  # some network file systems have no locks; there is only nobody to warn
                pass
        yield


def _read(path: Path) -> Iterator[tuple[str, Record]]:
    """Keys and results. What a killed writer left of a last line is passed over."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        where = f"{path}, line {number}"
        record = parse_json(line, where)
        if record.keys() != {"cell", "result"} or not all(isinstance(one, dict) for one in record.values()):
            raise CheckpointError(f"{where} must have a cell and its result; delete the line, and measure it again.")
        yield json.dumps(record["cell"], sort_keys=True), record["result"]


def _fields(cell: Any) -> Record:
    return {"kind": type(cell).__name__, **dataclasses.asdict(cell)}


@functools.cache  # a sweep asks for all cells after each one
def _key(cell: Cell) -> str:
    return json.dumps(_fields(cell), sort_keys=True)


def _line(fields: Record, result: Record) -> bytes:
    return json.dumps({"cell": dict(sorted(fields.items())), "result": result}, allow_nan=False).encode() + b"\n"
