"""A page of memory in which a process says where it is, and which others of its machine read, even after its death."""

import json
import mmap
import os
from contextlib import suppress
from typing import Any

SIZE = mmap.PAGESIZE


class Board:
    """This process' own page. Writing takes some microseconds and no call of the system. Linux only: elsewhere nothing.

    It is memory without a name in any file system, so that nothing is left of it once nobody looks at it.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        self._page: mmap.mmap | None = None
        with suppress(AttributeError, OSError):
            self.descriptor = os.memfd_create("prenorm")
            os.truncate(self.descriptor, SIZE)
            self._page = mmap.mmap(self.descriptor, SIZE)

    def write(self, value: Any) -> None:
        """Have this value, which JSON can hold, on the page."""
        if self._page is not None:
            text = json.dumps(value).encode()[: SIZE - 1] + b"\0"
            self._page[: len(text)] = text


class OthersBoard:
    """The page of another process of this machine, which still runs."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self._page: mmap.mmap | None = None
        with suppress(OSError, ValueError), open(f"/proc/{pid}/fd/{descriptor}", "rb") as file:
            self._page = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)

    def read(self) -> Any:
        """The newest value; None where there is none to be read."""
        if self._page is None:
            return None
        with suppress(ValueError):  # it died in the middle of writing
            return json.loads(self._page[: self._page.find(b"\0")])
        return None
