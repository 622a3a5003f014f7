"""What the sandbox refuses, such as another process or a download, and a GPU that is not there: no fault of a block."""

import errno
import os
import re
import socket
import traceback
from collections.abc import Iterator

import torch

CODES = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
OFFLINE = frozenset({"ConnectionError", "ConnectError", "LocalEntryNotFoundError"})
"""What libraries raise without a network: Python, requests, httpx, and Hugging Face's that are told to stay offline."""
WAY_OUT = 'put what is fetched beside the file, or do this under if __name__ == "__main__"'


def refused(error: BaseException) -> str:
    """What was refused, and the way out; empty if the error, and what it came of, have other reasons."""
    for one in _with_causes(error):
        what = _refused(one)
        if what:
            return f"the sandbox refuses {what} ({type(one).__name__}: {one}): {WAY_OUT}"
    return ""


GPU = re.compile(r"\b(cuda|nvidia|gpus?)\b", re.IGNORECASE)


def wants_gpu(error: BaseException) -> str:
    """That a GPU is asked for, by an assertion or a raise statement, where there is none; empty for other errors."""
    frames = traceback.extract_tb(error.__traceback__)
    statement = (frames[-1].line or "").strip() if frames else ""
    if torch.cuda.is_available() or not re.match(r"(assert|raise)\b", statement):
        return ""
    if not GPU.search(f"{statement} {error}"):
        return ""
    return f"a GPU is asked for, and there is none here ({type(error).__name__}: {error}): check it where there is one"


def _refused(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if frames and "multiprocessing" in frames[-1].filename and isinstance(error, OSError):
        return "another process"  # its locks are files in memory, which are not there
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return "a thread"
    if isinstance(error, socket.gaierror) or any(one.__name__ in OFFLINE for one in type(error).__mro__):
        return "the network"
    if isinstance(error, RuntimeError) and str(error).endswith(tuple(os.strerror(code) for code in CODES)):
        return "to write"  # torch.save
    if not isinstance(error, OSError) or error.errno not in CODES:
        return ""
    return f"to read or change {error.filename}" if error.filename else "another process, or the network"


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, those that it was raised from, and those that were being handled when it was raised."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    for one in waiting:
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]
