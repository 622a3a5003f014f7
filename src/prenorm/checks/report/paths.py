"""Paths in a verdict, told as its author knows them: from the folder that was handed in, wherever it was judged."""

import dataclasses
from pathlib import Path
from typing import Any


def inside(told: Any, folder: Path) -> Any:
    """The same verdict, finding, text, ... in which paths inside a folder begin there. told: anything of those."""
    places = sorted({f"{folder.absolute()}/", f"{folder.resolve()}/"}, key=len, reverse=True)
    return _inside(told, places)


def _inside(told: Any, places: list[str]) -> Any:
    if isinstance(told, str):
        for one in places:
            told = told.replace(one, "")
        return told
    if isinstance(told, dict):
        return {name: _inside(value, places) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return type(told)(_inside(value, places) for value in told)
    if dataclasses.is_dataclass(told) and not isinstance(told, type):
        fields = {one.name: _inside(getattr(told, one.name), places) for one in dataclasses.fields(told)}
        return dataclasses.replace(told, **fields)
    return told
