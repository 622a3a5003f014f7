"""Checkpoints that are written while training goes on."""

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..distributed.checkpoints import Parts, Shares
from ..distributed.exchange import Group
from ..errors import CheckpointError, ProcessError
from .checkpoints import save_checkpoint
from .config import TrainConfig


class CheckpointWriter:
    """Saves the checkpoints of a run in one thread of its own.

    `save` copies the tensors into memory that is kept for that, and returns: training waits as long as the copy takes,
    and once more where the checkpoint before is still being written. An error of the thread is raised by the next call
    of any method, and at the end of the context, which waits for the last checkpoint.
    Of several processes, `group`, each saves its share. All call `save` together; an error of one is raised in all.
    """

    def __init__(self, run: Path, config: TrainConfig, environment: Mapping[str, Any], group: Group = None) -> None:
        self._run, self._config, self._environment, self._group = run, config, environment, group
        self._shares = Shares(group)
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._thread = ThreadPoolExecutor(1, "prenorm-checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, parts: Parts, state: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint of a step. Raises CheckpointError where the one before could not be written."""
        self.wait()
        self._copy(self._shares.of(parts))
        # What is handed over is not touched again before the thread is done with it.
        arguments = (self._run, step, self._config, self._environment, self._buffers, copy.deepcopy(dict(state)))
        self._writing = self._thread.submit(save_checkpoint, *arguments, self._group)

    @property
    def has_failed(self) -> bool:
        """Whether the newest checkpoint is known to be unwritten; `wait` raises the reason."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint is on the disk. Raises CheckpointError where it could not be written."""
        if (writing := self._writing) is not None:
            try:
                writing.result()
            finally:  # an error is told once; Ctrl-C while waiting leaves it to the next call
                self._writing = None if writing.done() else writing

    @torch.no_grad()
    def _copy(self, parts: Parts) -> None:
        """Have the tensors' numbers of now in buffers on the CPU; a buffer that fits from last time is used again."""
        before, self._buffers = self._buffers, {}
        for part, tensors in parts.items():
            old = before.get(part, {})
            self._buffers[part] = {name: _copied(tensor, old.get(name)) for name, tensor in tensors.items()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # copies from a GPU into pinned memory are on their way until then

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except (CheckpointError, ProcessError) as failure:
            if error is None:
                raise
            raise type(failure)(f"{failure} The run had ended before: {error}") from error


def _copied(tensor: Tensor, buffer: Tensor | None) -> Tensor:
    """The numbers of a tensor in the buffer, or in a new one where that does not fit."""
    if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffer.copy_(tensor, non_blocking=tensor.is_cuda)
