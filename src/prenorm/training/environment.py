"""What the numbers of a run depend on beside its settings: versions, threads, the machine, the text itself."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..kernels.cpu import build, native
from .data.corpus import Say
from .device import Device
from .tokens import TextData

# What all processes of a run must have the same of: sums are added up in another order, or their parts do not match.
SHARED = ("prenorm", "torch", "numpy", "tokenizers", "threads", "device", "dtype", "text")

# Two runs that differ in one of these do not learn the same.
FIXED = ("device", "dtype", "text")

SAMPLES, SAMPLE_BYTES = 64, 1_000_000  # of a text that is larger than all of these together, the fingerprint has these


def environment_of(device: Device, data: TextData) -> dict[str, Any]:
    """What a run records beside its settings, as JSON can hold it.

    device and dtype are what the settings of these names stand for on this machine; kernels are the instructions that
    the C++ kernels were compiled for, processor what torch's own go by.
    """
    return {
        **versions(),
        "threads": torch.get_num_threads(),
        "kernels": _kernels() if device.device.type == "cpu" else "none",
        "processor": _processor(device.device),
        "device": device.device.type,
        "dtype": device.format,
        "text": _fingerprint(data),
    }


def versions() -> dict[str, str]:
    """Of the packages that the numbers of a run follow from."""
    others = {name: _version(name) for name in ("prenorm", "numpy", "tokenizers")}
    return {"prenorm": others.pop("prenorm"), "torch": torch.__version__, **others}


def compare(there: Mapping[str, Any], here: Mapping[str, Any], checkpoint: Path, say: Say) -> None:
    """Say in which versions, threads and kernels a checkpoint was made with others than these.

    Raises ConfigError where the device, the number format or the text is another: its numbers would not go on.
    """
    changed = {name: (there.get(name), here[name]) for name in here if there.get(name) != here[name]}
    if "text" in changed:
        raise ConfigError(
            f"a run goes on exactly only with its own text, but what lies in the run's data folder, or its tokenizer, "
            f"is not what {checkpoint} was trained on; put these files back, or start another run with another --out."
        )
    fixed = [f"{name} is {old} there and {new} here" for name, (old, new) in changed.items() if name in FIXED]
    if fixed:
        raise ConfigError(
            f"a run goes on exactly only with the device and number format of {checkpoint}, but {', '.join(fixed)} "
            "('auto' is what the machine has); give --device and --dtype as they were, or start another run with "
            "another --out."
        )
    if changed:
        listed = ", ".join(f"{name} {old} (now {new})" for name, (old, new) in changed.items())
        say(
            f"{checkpoint} was made with {listed}. Sums may be added up in another order, so numbers may differ in "
            "their last bits from those of a run that never stopped."
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        return "unknown"


def _kernels() -> str:
    kernels = native.load()
    if kernels.library is None:
        return f"none: {kernels.unavailable_reason}"
    return f"{kernels.which}, sources {build.digest(build.sources())[:12]}"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""


def _fingerprint(data: TextData) -> str:
    """A hash of the tokenizer, of where documents begin, of what has no loss, and of the tokens: samples of many.

    It tells one text from another. Whether the files of the text are whole is checked where they are read.
    """
    digest = hashlib.sha256(data.tokenizer.to_str().encode())
    for stream in (data.train, data.heldout):
        digest.update(f"{len(stream.tokens)} {len(stream.starts)} {len(stream.unscored)} ".encode())
        for numbers in (stream.starts, stream.unscored, stream.tokens):
            count = SAMPLE_BYTES // numbers[:1].itemsize
            places = range(0, len(numbers), max(count, len(numbers) // SAMPLES))
            for place in places:
                digest.update(numbers[place : place + count].tobytes())
            digest.update(numbers[-count:].tobytes())
    return digest.hexdigest()
