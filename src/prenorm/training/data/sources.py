"""Finding files: all below some paths, each once, in an order that no file system changes, and what was left out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError

# In Python's own library these folders hold what was installed or compiled later.
NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}

# A folder with these is a run, or what `prenorm data` writes: metrics and vocabularies are no text to learn from.
NO_TEXT = {
    "the folder of a run": {"config.toml", "metrics.jsonl"},
    "prepared tokens": {"data.json", "train-starts.npy"},
}


class Source(NamedTuple):
    """A file that was found, and whether somebody named it: then a fault in it is an error, and not passed over.

    `root` is the number of the path that led to it.
    """

    name: str
    path: Path
    named: bool
    root: int


class LeftOut(NamedTuple):
    """A file or folder that was not read, and why."""

    name: str
    reason: str


class Found(NamedTuple):
    """The files below some paths, by path, then by name; what a rule leaves out; folders that cannot be read."""

    sources: list[Source]
    left_out: list[LeftOut]
    unreadable: list[LeftOut]


def find_sources(roots: Sequence[Path], *, leave_out: Path | None = None) -> Found:
    """Every file that is named by `roots`, or lies below a folder that is.

    Links are followed, to files and to folders, but not from a folder to one around it, which would never end. A file
    that several paths lead to is found once: by a path without links, where there is one. Hidden files and folders,
    those of NOT_OURS, folders of runs and all in `leave_out` are left out.
    Raises DataError for a path that is missing, and for a folder among `roots` that cannot be read.
    """
    walk = _Walk(leave_out)
    for number, root in enumerate(roots):
        walk.root(root, number)
    walk.follow_links()
    by_root = sorted(walk.sources, key=lambda source: (source.root, source.name, str(source.path)))
    return Found(by_root, walk.left_out, walk.unreadable)


class _Place(NamedTuple):
    """A path, its name below its root, where it really lies once its folder's links are resolved, the root's number."""

    path: Path
    name: str
    real: str
    root: int


class _Walk:
    def __init__(self, leave_out: Path | None) -> None:
        self.sources: list[Source] = []
        self.left_out: list[LeftOut] = []
        self.unreadable: list[LeftOut] = []
        self._own = os.path.realpath(leave_out) if leave_out else None
        self._seen: set[str] = set()  # where the files and folders so far really lie
        self._links: list[_Place] = []

    def root(self, root: Path, number: int) -> None:
        real = os.path.realpath(root)
        if root.is_dir():
            self._below(_Place(root, "", real, number))
            if self.unreadable and self.unreadable[-1].name == "":
                raise DataError(f"the folder {root} cannot be read: it is {self.unreadable[-1].reason}.")
        elif root.exists():
            self._file(_Place(root, root.name, real, number), named=True)
        else:
            raise DataError(f"there is no file or folder at {root}; texts are read from paths that exist.")

    def follow_links(self) -> None:
        """What only links lead to: last, so that a file has the name under which it really lies in a root."""
        while self._links:
            links, self._links = sorted(self._links, key=lambda place: (place.root, place.name, str(place.path))), []
            for path, name, lies, number in links:
                real = os.path.realpath(path)
                if not os.path.isdir(real):
                    self._file(_Place(path, name, real, number), named=False)
                elif os.path.commonpath([real, lies]) == real:
                    self.left_out.append(LeftOut(name, "a link to a folder around it"))
                else:
                    self._below(_Place(path, name, real, number))

    def _below(self, folder: _Place) -> None:
        """All below a folder but what is behind links, which are kept for later."""
        pending = [folder]
        while pending:
            folder = pending.pop()
            if self._is_new(folder):
                pending += self._in(folder)

    def _in(self, folder: _Place) -> list[_Place]:
        """Take the files of a folder. Gives the folders in it."""
        try:
            with os.scandir(folder.path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable.append(LeftOut(folder.name, f"unreadable ({error.strerror})"))
            return []
        names = {entry.name for entry in entries}
        if kind := next((kind for kind, files in NO_TEXT.items() if names >= files), None):
            self.left_out.append(LeftOut(folder.name or str(folder.path), kind))
            return []
        folders = []
        for entry in entries:
            name = f"{folder.name}/{entry.name}" if folder.name else entry.name
            place = _Place(Path(entry.path), name, os.path.join(folder.real, entry.name), folder.root)
            if entry.name.startswith("."):
                self.left_out.append(LeftOut(name, "hidden"))
            elif entry.name in NOT_OURS and entry.is_dir():
                self.left_out.append(LeftOut(name, entry.name))
            elif entry.is_symlink():
                self._links.append(place)
            elif entry.is_dir():
                folders.append(place)
            else:
                self._file(place, named=False)
        return folders

    def _file(self, place: _Place, *, named: bool) -> None:
        if self._is_new(place):
            self.sources.append(Source(place.name, place.path, named, place.root))

    def _is_new(self, place: _Place) -> bool:
        """Whether no other path has led here. What is left out is remembered, too."""
        if self._own and os.path.commonpath([self._own, place.real]) == self._own:
            self.left_out.append(LeftOut(place.name, "this run's own"))
            return False
        if place.real in self._seen:
            self.left_out.append(LeftOut(place.name or str(place.path), "found already by another path"))
            return False
        self._seen.add(place.real)
        return True
