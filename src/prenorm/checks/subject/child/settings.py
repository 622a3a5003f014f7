"""Settings of the whole process, as torch has them when it starts: a script that changes them changes no block."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Setting:
    """name: as a report says it; usual: what it is when torch starts."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    usual: Any


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None leaves no mode behind


SETTINGS = (
    Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    Setting("default device", torch.get_default_device, _set_default_device, torch.device("cpu")),
    Setting("gradients", torch.is_grad_enabled, torch.set_grad_enabled, True),
    Setting(
        "deterministic algorithms",
        _deterministic,
        lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
        (False, False),
    ),
    Setting("threads", torch.get_num_threads, torch.set_num_threads, torch.get_num_threads()),
    Setting("anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
    Setting(
        "float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    ),
)


@contextlib.contextmanager
def usual_settings(notes: dict[str, str]) -> Iterator[None]:
    """Give every setting its usual value, and afterwards the one that it had. notes: takes those that were changed."""
    before = [one.read() for one in SETTINGS]
    for setting, value in zip(SETTINGS, before, strict=True):
        if value != setting.usual:
            setting.write(setting.usual)
    try:
        yield
    finally:
        for setting, value in zip(SETTINGS, before, strict=True):
            changed = setting.read()
            if changed != setting.usual:
                notes[setting.name] = f"{_shown(changed)} is set for the whole process; {_shown(setting.usual)} is used"
            if changed != value:
                setting.write(value)


def _shown(value: Any) -> str:
    return str(value[0] if isinstance(value, tuple) else value).removeprefix("torch.")
