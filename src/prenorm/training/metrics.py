"""metrics.jsonl: a line a step, and a line an evaluation, in agreement with the checkpoint that a run goes on from.

A step has step, loss (nats per token), lr (of the blocks' matrices), grad_norm (before it is clipped),
tokens_per_second, and mfu_causal and mfu_6n_attention, shares of the product rate that the run measured at its start
(see utilisation.py); in float16 loss_scale, too. A step that was left out has skipped, the reason, and no number that
is not finite.
An evaluation has step, eval_loss (nats per token) and eval_bits_per_byte, and with a moving average of the weights
ema_eval_loss and ema_eval_bits_per_byte. All are of the same part of the held-out text, but for the one at the end of a
run, which has all_text: true. samples.jsonl is of the same kind: step, prompt, text.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..checkpoint.files import parse_json, write_atomically
from ..errors import CheckpointError

Record = dict[str, Any]
Sink = Callable[[Record], None]


class Metrics:
    """The open metrics file of a run, holding what happened up to a step; later lines are dropped when it is opened.

    also: is given every record that is written.
    """

    def __init__(self, path: Path, *, up_to_step: int, also: Sink | None = None) -> None:
        self._also = also
        kept = [record for record in read_metrics(path, synced=up_to_step) if record["step"] <= up_to_step]
        write_atomically(path, "".join(_line(record) for record in kept).encode("utf-8"))
        self._newest = {name: record["step"] for record in kept if "all_text" not in record for name in record}
        self._file = path.open("a", encoding="utf-8")

    def has(self, step: int, name: str) -> bool:
        """Whether there is a record with this name in it, of this step or a later one."""
        return self._newest.get(name, 0) >= step

    def write(self, record: Record) -> None:
        """Add a line; it survives the death of the process. Raises CheckpointError when there is no room for it."""
        self._newest |= dict.fromkeys(record, record["step"])
        if self._also:
            self._also(record)
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self._file.name} could not be written: {error.strerror}; make room, then go on with --resume."
            ) from error

    def sync(self) -> None:
        """Make every line so far survive a power cut too."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # a full disk was reported by the write that met it
            self._file.close()


class NoMetrics:
    """In place of `Metrics` in a process that writes none: rank 0 does."""

    def has(self, step: int, name: str) -> bool:
        """Yes: there is nothing for this process to write."""
        return True

    def write(self, record: Record) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


Lines = Metrics | NoMetrics


def read_metrics(path: Path, *, synced: int | None = None) -> list[Record]:
    """The records of a metrics file, none if there is no file. A last line that a kill left incomplete is skipped.

    synced: the last step whose lines were certainly on the disk. A power cut may spoil those after it: once there is a
    line of that step, reading ends where a line is not a record.
    Raises CheckpointError for a line that is not a record.
    """
    if not path.exists():
        return []
    records: list[Record] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        where = f"{path}, line {number}"
        try:
            record = parse_json(line, where)
            if not isinstance(record.get("step"), int):
                raise CheckpointError(f"{where} must have a step, but is {line[:80]!r}.")
        except CheckpointError as error:
            if synced == 0 or (synced and records and records[-1]["step"] >= synced):
                break
            raise CheckpointError(f"{error} Delete that line: the run needs none of them to go on.") from error
        records.append(record)
    return records


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
