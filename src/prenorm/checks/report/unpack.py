"""A zip that somebody handed in, unpacked safely: its sources, and the data that they may read."""

import re
import stat
import zipfile
from pathlib import Path, PurePath, PurePosixPath

MOST_FILES = 5_000  # of a zip
MOST_BYTES = 200 << 20  # that a zip may unpack to
MOST_TIMES = 200  # times the size of the zip; more is a zip bomb
LARGEST = 20 << 20  # bytes of one unpacked file
SOURCES = (".py", ".ipynb")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def unpack(path: Path, folder: Path) -> list[str]:
    """Unpack a zip, without hidden folders. Gives the names of what is left out: archives, large and damaged data.

    Raises ValueError for paths that lead outside, for links, and for sources that unpack to far more than their size.
    """
    folder.mkdir(parents=True)
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir() and not hidden(_path(one))]
        for one in members:
            _check_path(one)
        _check_sources([one for one in members if _is_source(one)])
        left, files, left_out = MOST_BYTES, 0, []
        for one in sorted(members, key=lambda one: not _is_source(one)):  # sources first: data has what they leave
            try:
                content = _content(archive, one, min(LARGEST, left))
            except Exception:  # the readers of damaged archives raise errors of many kinds
                if _is_source(one):
                    raise
                content = None
            if content is None or files == MOST_FILES:
                left_out.append(one.filename)
                continue
            left, files = left - len(content), files + 1
            target = folder.joinpath(*_path(one).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return left_out


def _content(archive: zipfile.ZipFile, one: zipfile.ZipInfo, most: int) -> bytes | None:
    """What is in a file; None for data that is not unpacked. Raises ValueError if it has more bytes than most."""
    data = not _is_source(one)
    if data and (one.filename.lower().endswith(ARCHIVES) or _is_bomb(one) or one.file_size > most):
        return None
    with archive.open(one) as packed:
        content = packed.read(most + 1)  # the size that it declares may be wrong
    if len(content) > most:
        raise ValueError(f"{one.filename} is larger than {most:,} bytes")
    return content


def hidden(path: PurePath) -> bool:
    """Whether it is in a generated folder: .venv, __pycache__, __MACOSX."""
    return any((part.startswith((".", "__")) and part != "..") or part == "site-packages" for part in path.parts[:-1])


def _path(one: zipfile.ZipInfo) -> PurePosixPath:
    return PurePosixPath(one.filename.replace("\\", "/"))


def _check_path(one: zipfile.ZipInfo) -> None:
    """Raise ValueError for a path that leads out of the zip, and for a link."""
    path = _path(one)
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", one.filename):
        raise ValueError(f"{one.filename!r} leads out of it")
    if stat.S_ISLNK(one.external_attr >> 16):
        raise ValueError(f"{one.filename!r} is a link")


def _check_sources(sources: list[zipfile.ZipInfo]) -> None:
    """Raise ValueError for too many of them, or bombs."""
    if len(sources) > MOST_FILES:
        raise ValueError(f"it has {len(sources)} sources; at most {MOST_FILES} are unpacked")
    total = sum(one.file_size for one in sources)
    if total > MOST_BYTES:
        raise ValueError(f"its sources unpack to {total:,} bytes; at most {MOST_BYTES:,} are unpacked")
    if bombs := [one.filename for one in sources if _is_bomb(one)]:
        raise ValueError(f"{bombs[0]} unpacks to more than {MOST_TIMES} times its size")


def _is_source(one: zipfile.ZipInfo) -> bool:
    return one.filename.lower().endswith(SOURCES)


def _is_bomb(one: zipfile.ZipInfo) -> bool:
    return one.file_size > max(1 << 20, MOST_TIMES * max(1, one.compress_size))
