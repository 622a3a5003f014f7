"""Work that all processes of a group do together: each learns what the others got, or that one of them failed.

What is told goes through JSON. PyTorch's own functions for objects (all_gather_object, ...) send pickles.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CheckpointError, PrenormError, ProcessError

Group = dist.ProcessGroup | None  # None: this process alone


def rank_in(group: Group) -> int:
    """The number of this process in a group."""
    return 0 if group is None else dist.get_rank(group)


def size_of(group: Group) -> int:
    """How many processes there are in a group."""
    return 1 if group is None else dist.get_world_size(group)


def exchange(work: Callable[[], Any], group: Group, doing: str) -> list[Any]:
    """Do `work` in every process, and give by rank what each of them got, which JSON must hold.

    doing: what for, as messages say it, such as "saving step 5".
    Where it fails in one process, all raise the same CheckpointError, which says where and why; a process alone has the
    error itself. Raises ProcessError where a process has ended or does not answer.
    """
    if group is None:
        return [work()]
    error: Exception | None = None
    answer: dict[str, Any]
    try:
        answer = {"got": work()}
    except Exception as caught:
        error, answer = caught, {"failed": str(caught) if isinstance(caught, PrenormError) else repr(caught)}
    try:
        answers = [json.loads(text) for text in _gathered(json.dumps(answer).encode(), group)]
    except RuntimeError as lost:
        raise error or lost_process(doing, lost) from lost
    failed = [f"process {rank}: {one['failed']}" for rank, one in enumerate(answers) if "failed" in one]
    if failed:
        raise CheckpointError(f"{doing} failed in {'; '.join(failed[:3])}") from error
    return [one["got"] for one in answers]


def lost_process(doing: str, error: RuntimeError) -> ProcessError:
    """What to raise where a collective has failed with this error."""
    return ProcessError(f"{doing}: another process has ended or does not answer ({str(error).splitlines()[0]}).")


def _gathered(data: bytes, group: dist.ProcessGroup) -> list[bytes]:
    """The bytes of every process, by rank. They are padded to the longest, which all processes learn first."""
    count = size_of(group)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(data)]), group=group)
    longest = max(int(size) for size in sizes)
    padded = _tensor(data.ljust(longest, b"\0"))
    received = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(received, padded, group=group)
    return [one[: int(size)].numpy().tobytes() for one, size in zip(received, sizes, strict=True)]


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
