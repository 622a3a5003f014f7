"""Is there room for a model, in memory and on the disk? Asked before the first tensor is made or written."""

import shutil
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import CheckpointError


def check_memory(needed: int, device: torch.device | str | None, source: str) -> None:
    """Raise CheckpointError for weights of more bytes than the device has free, where that is known."""
    free = free_memory(torch.device(device or "cpu"))
    if free is not None and needed > free:
        raise CheckpointError(
            f"{source}: the weights need {gigabytes(needed)} in this dtype, but {gigabytes(free)} of memory are free; "
            "a narrower dtype needs less, such as dtype=torch.bfloat16."
        )


def check_disk(needed: int, folder: Path) -> None:
    """Raise CheckpointError for a model of more bytes than are free on the disk of a folder, which may not exist."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CheckpointError(
            f"{folder} needs {gigabytes(needed)}, but {gigabytes(free)} are free on its disk; make room, or choose a "
            "folder on another disk. Nothing was written."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that may still be allocated there: of a CPU, memory and swap, within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    free = _of_the_machine()
    container = _of_the_container()
    return min((one for one in (free, container) if one is not None), default=None)


def _of_the_machine() -> int | None:
    with suppress(OSError, ValueError, KeyError, IndexError):  # another system, or a sandbox without /proc
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
        return 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])
    return None


def _of_the_container() -> int | None:
    """What a limit of cgroup 2 leaves. Caches of files make way, so they do not count."""
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):
        limit = int((folder / "memory.max").read_text())  # "max" is no number
        used = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - int(used["anon"]) - int(used.get("slab_unreclaimable", 0)))
    return None


def gigabytes(number: int) -> str:
    """Bytes as people say them."""
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if number >= 10**power:
            return f"{number / 10**power:,.1f} {unit}"
    return f"{number} bytes"
