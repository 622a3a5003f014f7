"""Where a run computes, in which number format, and whether compiled."""

import ctypes
import os
import shutil
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

import torch

from ..errors import ConfigError
from ..models.lm import TransformerLM
from .config import TrainConfig
from .data.corpus import Say

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


class Device(NamedTuple):
    """A device, and the number format of the matrix products on it; pure: of everything else in a model, too."""

    device: torch.device
    dtype: torch.dtype
    pure: bool = False

    @property
    def format(self) -> str:
        """The number format, as the setting dtype names it."""
        return str(self.dtype).removeprefix("torch.") + ("-pure" if self.pure else "")

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What products are rounded to, while weights are in float32; None where everything has one format."""
        return None if self.pure or self.dtype == torch.float32 else self.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in `dtype`; weights, norms and the loss stay in float32. Nothing where `dtype` is pure."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def device_type(config: TrainConfig) -> str:
    """The kind of device that a run is on, such as cpu, before it is known whether there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device.split(":")[0]


def choose_device(config: TrainConfig, say: Say = lambda _: None, local_rank: int | None = None) -> Device:
    """What `device` and `dtype` ask for, auto resolved. Raises ConfigError for a device that is not there.

    `say` hears of a format that is slow there. local_rank: of several processes on a machine each has a GPU of its own,
    of this number.
    """
    if config.device == "auto":
        device = torch.device(device_type(config))
    else:
        try:
            device = torch.device(config.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch says of a missing CUDA that it was asserted
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device must be one of this machine, but {config.device!r} is not: {reason}") from error
    if device.type == "cuda" and local_rank is not None:
        device = _own_gpu(config, local_rank)
    if config.dtype == "auto":
        return Device(device, torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32)
    if config.dtype == "float16" and device.type == "cpu":
        say("float16 is some 30 times slower than float32 on a CPU; --dtype float32 or bfloat16 would be faster.")
    name, _, pure = config.dtype.partition("-")
    return Device(device, getattr(torch, name), pure=bool(pure))


def _own_gpu(config: TrainConfig, local_rank: int) -> torch.device:
    """The GPU of one of several processes on this machine."""
    count = torch.cuda.device_count()
    if ":" in config.device or local_rank >= count:
        raise ConfigError(
            f"each process of a machine must have a GPU of its own, but device is {config.device} and there are "
            f"{count} for local rank {local_rank}; give --device cuda, and start at most {count} processes on this "
            "machine."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for it: elsewhere bfloat16 is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def hold_on_to_memory() -> None:
    """Make this process reuse the memory of large tensors instead of giving it back to the system after each use.

    A CPU run is 15 % faster for it (1.9M parameters, compiled blocks): otherwise every page is mapped anew each time
    it is first touched. It is glibc's mallopt; where that is missing, nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def compile_blocks(model: TransformerLM, device: Device, say: Say) -> bool:
    """Have each block compiled when it is first called; names and weights stay. Gives whether that can be.

    Without a C++ compiler on a CPU, says so and does nothing.

    Blocks of one shape share the compiled code, so this costs one block's compilation, not the model's.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.device.type == "cpu" and shutil.which(compiler) is None:
        say(f"There is no C++ compiler ({compiler}), so the blocks are not compiled, and the run is slower.")
        return False
    for block in model.layers:
        block.compile(dynamic=False)  # a run has two or three shapes, each worth code of its own
    return True


def uncompile_blocks(model: TransformerLM) -> None:
    """Take back `compile_blocks`."""
    for block in model.layers:
        block._compiled_call_impl = None  # what Module.compile set; there is no public way back
