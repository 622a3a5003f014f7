"""What the sandbox refuses, such as another process or a download: no fault of the block that asks for it."""

import errno
import os
import socket
import traceback
from collections.abc import Iterator

CODES = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
WAY_OUT = 'put what is fetched beside the file, or do this under if __name__ == "__main__"'


def refused(error: BaseException) -> str:
    """What was refused, and the way out; empty if the error, and what it came of, have other reasons."""
    for one in _with_causes(error):
        what = _refused(one)
        if what:
            return f"the sandbox refuses {what} ({type(one).__name__}: {one}): {WAY_OUT}"
    return ""


def _refused(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if frames and "multiprocessing" in frames[-1].filename and isinstance(error, OSError):
        return "another process"  # its locks are files in memory, which are not there
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return "a thread"
    if isinstance(error, socket.gaierror):
        return "the network"
    if isinstance(error, RuntimeError) and str(error).endswith(tuple(os.strerror(code) for code in CODES)):
        return "to write"  # torch.save
    if not isinstance(error, OSError) or error.errno not in CODES:
        return ""
    return f"to read or change {error.filename}" if error.filename else "another process, or the network"


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
