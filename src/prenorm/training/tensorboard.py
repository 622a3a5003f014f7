"""A run's metrics for TensorBoard, beside metrics.jsonl (extra: tensorboard)."""

import importlib.util
from pathlib import Path

from ..errors import ConfigError
from .metrics import Record


def check_tensorboard() -> None:
    """Raise ConfigError unless the package is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("tensorboard=True needs the package: pip install 'prenorm[tensorboard]', or leave it out.")


class TensorBoard:
    """An events file in a folder, for steps after `up_to_step`: TensorBoard hides those that an earlier part of the run
    had written after it."""

    def __init__(self, folder: Path, *, up_to_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, which other runs do not wait for

        self._writer = SummaryWriter(folder, purge_step=up_to_step + 1)

    def write(self, record: Record) -> None:
        """Every number of a record, under its name, at its step."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
