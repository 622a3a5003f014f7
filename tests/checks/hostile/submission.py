"""A hostile submission: a file with a block that is wrong, and that attempts something on the way."""

import textwrap
from dataclasses import dataclass

PHASES = ("import", "constructor", "forward")

SOURCE = """
import os, sys
import torch
from torch import nn

SECRET, OUTSIDE, PRECIOUS, FOLDER = "@SECRET@", "@OUTSIDE@", "@PRECIOUS@", "@FOLDER@"
TCP, UDP, UNIX, ABSTRACT = @TCP@, @UDP@, "@UNIX@", "@ABSTRACT@"
PARENT, SERVER, VICTIM, PACKAGE = @PARENT@, @SERVER@, @VICTIM@, "@PACKAGE@"
driver = sys.modules.get("_prenorm_child.driver")
_write, _fork_out, _text = os.write, os._exit, repr


def attempt(action):
    _write(1, b"tried\\n")
    try:
        _write(1, b"gave " + _text(action())[:2000].encode() + b"\\n")
    except BaseException as error:
        _write(1, f"refused: {type(error).__name__}: {error}\\n".encode(errors="replace")[:2000])


def libc():
    import ctypes
    return ctypes.CDLL(None, use_errno=True)


def syscall(number, *arguments):
    import ctypes
    library = libc()
    gave = library.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if gave < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return gave


def attack(block=None, x=None):
@ATTACK@


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class TransformerBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, *args, **kwargs):
        super().__init__()
        self.norm1, self.norm2, self.attn, self.ffn = Norm(d_model), Norm(d_model), nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self.attn, name, nn.Linear(d_model, d_model, bias=False))
        self.ffn.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.ffn.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.ffn.down_proj = nn.Linear(d_ff, d_model, bias=False)
        if "@PHASE@" == "constructor":
            attempt(lambda: attack(self))

    def forward(self, x, *args, **kwargs):
        self.given = x
        if "@PHASE@" == "forward":
            attempt(lambda: attack(self, x))
        return self.answer(x)

    def answer(self, x):
        return x


if "@PHASE@" == "import":
    attempt(attack)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """code: the body of `attack(block, x)`, or a whole file. phase: when it runs. endless: it takes all the time."""

    name: str
    code: str
    phase: str = "import"
    endless: bool = False

    def source(self, places: dict[str, object]) -> str:
        """The file, with the canaries' places in it."""
        code = textwrap.dedent(self.code).strip()
        text = SOURCE.replace("@ATTACK@", textwrap.indent(code, "    ")).replace("@PHASE@", self.phase)
        if "class TransformerBlock" in code:
            text = SOURCE.replace("@ATTACK@", "    pass").replace("@PHASE@", "never") + "\n\n" + code + "\n"
        for name, place in places.items():
            text = text.replace(f"@{name}@", str(place))
        return text


def submissions(kind: str, codes: dict[str, str], *, endless: bool = False) -> list[Submission]:
    """One for each code, at import, in the constructor and in forward by turns; "name@phase" asks for one."""
    made = []
    for number, (name, code) in enumerate(codes.items()):
        name, _, phase = name.partition("@")
        phase = phase or PHASES[number % len(PHASES)]
        made.append(Submission(name=f"{kind}/{name}", code=code, phase=phase, endless=endless))
    return made
