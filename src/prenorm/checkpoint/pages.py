"""Memory for weights that are about to be read: in pages of 2 MB, where the system has them.

Linux clears a page when it is first written to. In pages of 4 KB, each of which is a fault of its own, that takes
longer than reading and casting what then goes into them.
"""

import math
import mmap
from contextlib import suppress

import torch
from jaxtyping import Shaped
from torch import Tensor

LEAST = 2**22  # bytes: a smaller tensor may hold no whole page of 2 MB


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Shaped[Tensor, "*shape"]:
    """An uninitialised tensor of the CPU; its memory goes back to the system when the last tensor of it is gone.

    Raises RuntimeError or OSError where there is no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):  # which Linux alone has
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
