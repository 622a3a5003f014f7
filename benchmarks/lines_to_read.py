"""How many lines there are to read: `make lines`.

The first table has the files whose functions run in one forward pass of the block, as plain formulas, causal and with
heads of its own for keys and values; what chooses among kernels (ops/backends.py) is left out. The second has the
modules that the block is made of: the block, its attention, norm, rotation and feed-forward. The last line counts all
Python outside of checks, challenge and kernels, type stubs included.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import prenorm
from prenorm import TransformerBlock, use_backend

HOME = Path(prenorm.__file__).parent
CHOICE = HOME / "ops" / "backends.py"
APART = ("checks", "challenge", "kernels")


def files_of(run: Callable[[], Any]) -> list[Path]:
    """The files of the package whose functions run in a call."""
    found: set[Path] = set()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(HOME):
            found.add(path)

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return sorted(found - {CHOICE})


def lines(path: Path) -> int:
    """As `wc -l` counts them."""
    return path.read_bytes().count(b"\n")


def show(title: str, paths: list[Path]) -> None:
    """A table."""
    print(f"{title}: {sum(map(lines, paths))} lines in {len(paths)} files")
    for path in paths:
        print(f"  {lines(path):5}  {path.relative_to(HOME)}")


def main() -> None:
    """Print the tables."""
    block = TransformerBlock(64, 4, 128, causal=True, num_kv_heads=2).eval()
    parts = (block, block.attn, block.norm1, block.attn.rope, block.ffn)
    with use_backend("reference"), torch.no_grad():
        show("one forward pass", files_of(lambda: block(torch.randn(2, 10, 64))))
    show("the block's modules", [Path(sys.modules[type(part).__module__].__file__ or "") for part in parts])
    every = [path for path in HOME.rglob("*.py*") if path.suffix in (".py", ".pyi")]
    rest = [path for path in every if path.relative_to(HOME).parts[0] not in APART]
    print(f"all Python but {', '.join(APART)}: {sum(map(lines, rest))} lines")


if __name__ == "__main__":
    main()
