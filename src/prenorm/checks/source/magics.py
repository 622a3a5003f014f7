"""A cell of a notebook as Python: lines for IPython and the shell become calls of get_ipython(), as IPython has it."""

import ast
import re
from dataclasses import dataclass

TIMED = ("%%time", "%%capture", "%%prun")
"""What stands above a cell that is Python all the same."""
MAGIC = re.compile(
    r"(?P<indent>[ \t]*)(?:%time[ \t]+(?P<timed>\w.*)"
    r"|(?P<made>\w[\w., \t]*=[ \t]*)[!%].*"
    r"|[!%?].*|[\w.]+\?{1,2}[ \t]*"
    r"|(?:pip|conda|mamba|cd|ls|cat|cp|mv|rm|mkdir|rmdir|load_ext|matplotlib)[ \t]+[\w./~$-].*)$"
)
"""A line that is no Python; names of commands stand without % or ! if IPython's automagic is on, as it usually is."""


def as_python(cell: str) -> str:
    """The Python of a cell, with as many lines; nothing for one in another language, such as %%bash.

    A line is IPython's only where a statement begins: inside brackets and texts, % is Python's.
    """
    lines = cell.split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines[first].startswith("%%"):
        if lines[first].split()[0] not in TIMED:
            return "\n" * (len(lines) - 1)
        lines[first] = ""
    inside = Inside()
    for number, line in enumerate(lines):
        found = MAGIC.match(line) if inside == Inside() else None
        if found is not None and found["timed"]:
            lines[number] = found["indent"] + found["timed"]
        elif found is not None and (found["made"] or not _is_python(line)):
            lines[number] = found["indent"] + (found["made"] or "") + "get_ipython()"
            last = number
            while line.endswith("\\") and last + 1 < len(lines):  # the command goes on
                last += 1
                line, lines[last] = lines[last], ""
        inside = inside.after(lines[number])
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Inside:
    """What a line of Python begins inside of: brackets, a text in three of these quotes, a statement that goes on."""

    brackets: int = 0
    quotes: str = ""
    goes_on: bool = False

    def after(self, line: str) -> "Inside":
        """What the line after this one begins inside of."""
        brackets, quotes, token, at = self.brackets, self.quotes, "", 0
        while found := END[quotes].match(line, at) if quotes else TOKEN.search(line, at):
            at, token = found.end(), found[0]
            if quotes:
                quotes = ""
            elif token in END:
                quotes = token
            elif token in ("(", "[", "{"):
                brackets += 1
            elif token in (")", "]", "}"):
                brackets = max(0, brackets - 1)
        return Inside(brackets, quotes, goes_on=token == "\\")


TOKEN = re.compile(r"""#.*|'{3}|"{3}|'(?:\\.|[^'\\])*'?|"(?:\\.|[^"\\])*"?|[()\[\]{}]|\\$""")
END = {"'''": re.compile(r"(?:\\.|[^\\])*?'''"), '"""': re.compile(r'(?:\\.|[^\\])*?"""')}


def _is_python(line: str) -> bool:
    try:
        ast.parse(line.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
