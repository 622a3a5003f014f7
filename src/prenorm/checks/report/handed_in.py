"""Submissions in a folder: subfolders, files, notebooks and zips, which are unpacked safely."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ConfigError
from .canvas import together
from .unpack import ARCHIVES, SOURCES, hidden, unpack

MOST_LISTED = 4  # names in a row of the table
MOST_SOURCES = 5_000  # of a folder
MOST_CHARACTERS = 20 << 20  # of a file that is searched for a class
LISTS = (".csv", ".tsv", ".xlsx", ".xls", ".ods", ".json", ".md")
"""What a teacher keeps beside submissions, such as grades; other files are somebody's work."""

ASIDE = frozenset({"test", "tests", "backup", "backups", "bak", "old", "legacy", "archive", "build", "dist"})
"""Folders of tests, of versions that somebody put aside, and of what a build made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One submission: its name, FILE:CLASS, and the folder it may not leave; without a subject, the problem.

    note: what its reader should know of it, such as what was not unpacked.
    """

    name: str
    subject: str | None = None
    within: str | None = None
    problem: str = ""
    note: str = ""


def find_submissions(
    folder: Path, pattern: str = "layers.py:TransformerBlock", *, unpacked: Path | None = None
) -> list[Submission]:
    """Every subfolder, .py file, notebook and zip of a folder, in the order of their names.

    pattern: FILE.py:CLASS. FILE.py is looked for in a subfolder or zip and all below it (it may have folders, and * and
    ?, in letters of either case), then a file or notebook that defines CLASS: of several, the one in a folder above all
    others, or the only one that is no test, backup or build. Of a file beside the subfolders only CLASS is used.
    unpacked: where zips are unpacked to, and loose files of one student put together. Left out are names that begin
    with . or __, and lists, such as grades.csv; all other files, archives and links are submissions with a problem, so
    that everybody has a row.
    Raises ConfigError for a pattern that is none, and a folder that is none or empty.
    """
    file, colon, name = pattern.rpartition(":")
    if not colon or not file.endswith(SOURCES) or not name.isidentifier():
        raise ConfigError(f"the pattern must be FILE.py:CLASS, such as layers.py:TransformerBlock, not {pattern!r}.")
    if not folder.is_dir():
        raise ConfigError(f"submissions must be in a folder, but {folder} is not a folder.")
    found = []
    paths = sorted(one for one in folder.absolute().iterdir() if not one.name.startswith((".", "__")))
    for path in paths if unpacked is None else together(paths, unpacked / ".together"):
        try:
            submission = _submission(path, file, name, unpacked)
        except OSError as error:
            submission = Submission(name=path.name, problem=f"it cannot be read: {error}")
        if submission is not None:
            found.append(submission)
    if not found:
        raise ConfigError(
            f"{folder} has neither subfolders nor .py files, notebooks or zips; "
            "give the folder that holds all submissions."
        )
    return found


def _submission(path: Path, file: str, name: str, unpacked: Path | None) -> Submission | None:
    """What is in a folder of submissions under this name; None for something else, such as a list of grades."""
    suffix = path.suffix.lower()
    wanted = path.is_dir() or suffix in (*SOURCES, ".zip")
    if wanted and path.is_symlink():  # it could be the work of somebody else
        return Submission(name=path.name, problem=f"it is a link, to {path.readlink()}")
    if path.is_dir():
        inside = [one for one in sorted(path.rglob("*")) if one.suffix.lower() == ".zip" and not one.is_symlink()]
        found = _in_folder(path.name, path, file, name)
        if found.subject is None and len(inside) == 1 and unpacked is not None and not sources(path):
            return _in_zip(path.name, inside[0], unpacked / path.name, file, name)
        return found
    if suffix in SOURCES:
        return Submission(name=path.name, subject=f"{path}:{name}", within=str(path))
    if suffix == ".zip" and unpacked is not None:
        return _in_zip(path.name, path, unpacked / path.name, file, name)
    if suffix in ARCHIVES:
        return Submission(name=path.name, problem=f"it is a {suffix} archive; only folders, files and zips are read")
    if suffix in LISTS:
        return None
    kind = f"a {suffix} file" if suffix else "a file without an ending"
    return Submission(name=path.name, problem=f"it is {kind}; only folders, .py files, notebooks and zips are read")


def _in_folder(shown: str, path: Path, file: str, name: str) -> Submission:
    """The file of the pattern; if there is none, the only file or notebook that defines the class."""
    what, found = _candidates(path, file, name)
    if not found:
        return Submission(name=shown, problem=f"it has no {file}, and no class {name}{_instead(path)}")
    above = [one for one in found if all(one.parent in other.parents for other in found)]
    if len(found) > 1 and len(above) != 1:
        return Submission(name=shown, problem=f"it has {what} more than once: {_inside(path, found)}")
    chosen = above[0]
    others = [one for one in _candidates(path, file, name, all_folders=True)[1] if one != chosen]
    note = f"judged: {_inside(path, [chosen])}, not {_inside(path, others)}" if others else ""
    return Submission(name=shown, subject=f"{chosen}:{name}", within=str(path), note=note)


def _candidates(path: Path, file: str, name: str, *, all_folders: bool = False) -> tuple[str, list[Path]]:
    """What was looked for, and the files that are it: of the pattern, or else those that define the class.

    Tests, backups and what a build made are looked at only if nothing else has it, or the pattern names them.
    """
    files = [(one, one.relative_to(path).as_posix()) for one in sources(path)]
    named = [one for one, shown in files if fnmatch.fnmatchcase(f"/{shown}", f"*/{file}")] or [
        one for one, shown in files if fnmatch.fnmatchcase(f"/{shown}".lower(), f"*/{file}".lower())
    ]
    named = [one for one in named if name in _text(one)] or named
    defining = [one for one, _ in files if re.search(rf"\bclass\s+{name}\b", _text(one))]
    for what, found in ((file, named), (f"class {name}", defining)):
        if main := [one for one in found if all_folders or not _is_aside(one.relative_to(path), Path(file))]:
            return what, main
    return (file, named) if named else (f"class {name}", defining)


def _is_aside(path: Path, wanted: Path) -> bool:
    """Whether it is a test, a backup or what a build made, and the pattern does not name it."""
    folders, asked = ({part.lower() for part in one.parts} for one in (path.parent, wanted))
    is_test = path.name.startswith("test_") and not wanted.name.startswith("test_")
    return is_test or not ASIDE.isdisjoint(folders - asked)


def _inside(path: Path, files: Sequence[Path]) -> str:
    return listed([one.relative_to(path).as_posix() for one in files])


def _instead(path: Path) -> str:
    """What is in a folder that has no class to judge."""
    inside = [one for one in sorted(path.rglob("*")) if not one.is_dir() and not hidden(one.relative_to(path))]
    if not inside:
        return ": it is empty"
    archives = [one.name for one in inside if one.name.lower().endswith(ARCHIVES)]
    said = f"; {archives[0]} is not unpacked" if archives else ""
    shown = [f"{one.name} (a link)" if one.is_symlink() else one.name for one in inside[:3]]
    return f": it has {', '.join(shown)}{', ...' if len(inside) > 3 else ''}{said}"


def sources(path: Path) -> list[Path]:
    """All Python files and notebooks; links that lead out of the submission are left out."""
    found = [one for one in path.rglob("*") if one.suffix.lower() in SOURCES and not hidden(one.relative_to(path))]
    here = path.resolve()
    return sorted(one for one in found if one.is_file() and here in one.resolve().parents)[:MOST_SOURCES]


def _text(path: Path) -> str:
    return path.read_bytes()[:MOST_CHARACTERS].decode(errors="replace")


def _in_zip(shown: str, path: Path, folder: Path, file: str, name: str) -> Submission:
    try:
        left_out = unpack(path, folder)
    except Exception as error:  # the readers of damaged archives raise errors of many kinds
        why = "it has a password" if "is encrypted" in str(error) else error or type(error).__name__
        return Submission(name=shown, problem=f"the zip is refused: {why}")
    found = _in_folder(shown, folder, file, name)
    said = f"not unpacked: {listed(left_out)}" if left_out else ""
    return replace(found, note="; ".join(filter(None, [found.note, said])))


def listed(names: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join([*names[:MOST_LISTED], *(["..."] if len(names) > MOST_LISTED else [])])
