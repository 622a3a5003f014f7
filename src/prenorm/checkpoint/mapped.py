"""The tensors of a large file as views of the file itself, as transformers has them.

Filling fresh memory takes longer than all else that opening does, because Linux clears each page before the file is
copied into it. Mapping a file takes no time, and several processes share its pages. The mapping is private: what is
written to a tensor never reaches the file. What another program writes into the file reaches the tensors, though, and
where it cuts the file short, reading behind the new end kills the process. Replacing a file by renaming another one, as
all writers of ours do, is safe; for other ones, `check_unchanged` is asked where a model is about to be used.
"""

import mmap
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from .header import DTYPES, Header, version_of

LEAST = 2**26  # bytes of a file that is mapped; copying a smaller one takes a few hundredths of a second

Versions = Mapping[Path, tuple[int, ...]]  # of mapped files, as in their headers


def views_of(file: BinaryIO, header: Header, names: Iterable[str]) -> dict[str, Tensor]:
    """Those of an open file's tensors that can be views of it, by name; none where the file is better copied."""
    # Mapped files have no 2 MB pages. Who asks for these, as cli/main.py does, means to generate for longer.
    large_pages = os.environ.get("THP_MEM_ALLOC_ENABLE", "0") != "0"
    size = header.version[2]
    if size < LEAST or large_pages or sys.platform == "win32":  # where an open file cannot be replaced
        return {}
    mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    views: dict[str, Tensor] = {}
    for name in names:
        info = header.tensors[name]
        dtype, begin, end = DTYPES[info.dtype], header.start + info.begin, header.start + info.end
        if begin < end and begin % dtype.itemsize == 0:
            count = (end - begin) // dtype.itemsize
            views[name] = torch.frombuffer(mapping, dtype=dtype, count=count, offset=begin).view(info.shape)
    return views


def check_unchanged(versions: Versions) -> None:
    """Raise CheckpointError for a mapped file that was written to. One that was replaced or deleted is still whole."""
    for path, version in versions.items():
        try:
            now = version_of(path)
        except OSError:
            continue
        if now[:2] == version[:2] and now != version:
            raise CheckpointError(
                f"{path} must stay as it is while a model that was opened from it is in use, because large weights are "
                "read from the file itself, but another program has written to it; open the folder again."
            )
