"""The learner's source as one text: all own files that the block uses, with the location of every line."""

import bisect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..verdict import Place
from .code import Code
from .parse import MAX_CHARACTERS, parse, split

MAX_CODE = 200  # characters of a line that are shown


class Text:
    """The source that was judged. The file under test comes last, so that its definitions override others."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._starts: list[int] = []  # the number of each file's first line
        self._files: list[str] = []
        texts: list[str] = []
        lines = 1
        for file, text in reversed([*self._read()]):
            self._starts.append(lines)
            self._files.append(file)
            texts.append(text)
            lines += len(split(text))
        self.source = "\n".join(texts)

    def place(self, line: int) -> Place | None:
        """The file and line of a line of this text."""
        number = bisect.bisect_right(self._starts, line) - 1
        return self._place(self._files[number], line - self._starts[number] + 1)

    def frame(self, line: int) -> dict[str, Any]:
        """A line of this text as the frame of an error that passed through it."""
        number = bisect.bisect_right(self._starts, line) - 1
        code = split(self.source)[line - 1].strip()
        return {"file": self._files[number], "line": line - self._starts[number] + 1, "function": "", "code": code}

    def numbers(self, error: Mapping[str, Any]) -> list[int]:
        """The lines of this text that an error passed through, the outermost first."""
        starts = dict(zip(self._files, self._starts, strict=True))
        frames = [(frame.get("file"), frame.get("line")) for frame in error.get("frames") or ()]
        return [starts[file] + line - 1 for file, line in frames if file in starts and isinstance(line, int)]

    def innermost(self, error: Mapping[str, Any]) -> Place | None:
        """The innermost line of the learner's own code that raised."""
        for frame in reversed(error.get("frames") or ()):
            file, line = frame.get("file"), frame.get("line")
            if isinstance(line, int) and isinstance(file, str) and self._is_own(file):
                return self._place(file, line)
        return None

    def _read(self) -> list[tuple[str, str]]:
        """The files that may be read, the one under test first."""
        found: list[tuple[str, str]] = []
        left = MAX_CHARACTERS
        stem = Path(self._code.root, *self._code.module.split("."))
        for file in self._code.files or (str(stem.with_suffix(".py")), str(stem / "__init__.py")):
            text = self._text(file)
            if text is not None and len(text) <= left and (not found or _parses(text)):
                left -= len(text)
                found.append((file, text))
        return found

    def _text(self, file: str) -> str | None:
        if file in self._code.texts:
            return self._code.texts[file]
        try:
            path = Path(file)
            if path.is_file() and path.stat().st_size <= MAX_CHARACTERS:
                return path.read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            pass
        return None

    def _is_own(self, file: str) -> bool:
        folders = [one for one in self._code.readable if "site-packages" not in one]
        return file in self._files or any(file.startswith(f"{one.rstrip('/')}/") or file == one for one in folders)

    def _place(self, file: str, line: int) -> Place | None:
        lines = split(self._text(file) or "")
        if not 1 <= line <= len(lines):
            return None
        code = lines[line - 1].strip()[:MAX_CODE]
        if line <= len(self._code.lines.get(file, ())):
            cell, line = self._code.lines[file][line - 1]
            file = f"{self._code.file} ({cell})"
        return Place(file=file, line=line, code=code)


def _parses(text: str) -> bool:
    try:
        parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
