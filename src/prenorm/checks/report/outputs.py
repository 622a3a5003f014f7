"""The results of a batch in each format, and in files: one judgement, and as many outputs as are wanted."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from .html import as_page
from .junit import junit
from .result import Result
from .table import as_table, to_csv

ENDINGS = {".csv": "csv", ".html": "html", ".json": "json", ".xml": "junit", ".txt": "text"}
"""The format of a file, by its ending."""


def check_path(path: Path, folder: Path) -> None:
    """Raise ConfigError where no results can be written to this file: before hours of judging, not after."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"--out FILE must end in one of {', '.join(ENDINGS)}, which says its format, but it is {path}."
        )
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--out FILE must be in a folder that is there, and be none itself, but it is {path}.")
    if path.parent.resolve() == folder.resolve():
        raise ConfigError(f"--out FILE must not be in {folder}, where the next batch would take it for a submission.")


def save(results: Sequence[Result], path: Path, title: str, about: str = "") -> None:
    """Write what written() gives in the format of the file's ending; CSV with the mark by which Excel knows UTF-8."""
    form = ENDINGS[path.suffix.lower()]
    encoding = "utf-8-sig" if form == "csv" else "utf-8"
    path.write_text(written(results, form, title, about), encoding=encoding, errors="replace", newline="")


def written(results: Sequence[Result], form: str, title: str, about: str = "") -> str:
    """The text of csv, html, json, junit or text, which ends in a newline. title, about: of a page."""
    match form:
        case "csv":
            return to_csv(results)
        case "html":
            return as_page(results, title, about)
        case "json":
            return json.dumps([one.to_json() for one in results], indent=2) + "\n"
        case "junit":
            verdicts = [dataclasses.replace(one.verdict, subject=one.name) for one in results if one.verdict]
            return junit(verdicts, {one.name: one.problem for one in results if one.verdict is None})
        case _:
            return as_table(results)
