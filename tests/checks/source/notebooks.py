"""Notebooks, written as their cells."""

import json
from pathlib import Path


def notebook(path: Path, *cells: str) -> Path:
    """The notebook of these cells with code, below a title."""
    code = [{"cell_type": "code", "source": one.splitlines(keepends=True)} for one in cells]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "# title"}, *code], "nbformat": 4}))
    return path
