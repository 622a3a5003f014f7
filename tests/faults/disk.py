"""A disk on which only what was synced is certain: what a power cut leaves of a trace of calls.

Data of a file is certain as it was at the file's last fsync; a name is certain once the folder that it is in was synced
after it was made, changed or deleted. Of everything else a power cut keeps what it likes.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .shim import Call


@dataclass
class Node:
    """A file, or a folder with nodes by name: as processes see it, and as it certainly is on the disk."""

    is_folder: bool
    data: bytes = b""
    synced: bytes = b""
    names: dict[str, "Node"] = field(default_factory=dict)
    certain: dict[str, "Node"] = field(default_factory=dict)


@dataclass
class Change:
    """Names that change together: in each folder, a name and the node that it has then (None: it is gone)."""

    parts: list[tuple[Node, str, Node | None]]
    needs: tuple[Node, str, Node] | None = None  # of a rename: the name that is taken away must be there


class Disk:
    """The files below a folder. What lies there when it is made is certain."""

    def __init__(self, root: Path) -> None:
        self._root_path = root
        self._root = _read(root)
        self._pending: list[Change] = []
        self._open: dict[int, Node] = {}

    def play(self, call: Call) -> None:
        """Do what a call did."""
        if call.name == "WRITE":
            self._open[call.number].data += call.first
        elif call.name == "SYNC":
            self._sync(self._open[call.number])
        elif call.name == "CLOSE":
            self._open.pop(call.number, None)
        else:
            path = Path(call.first.decode())
            if not path.is_relative_to(self._root_path):
                return
            folder, name = self._folder_of(path)
            if call.name == "OPEN":
                node = self._root if path == self._root_path else folder.names.get(name)
                if node is None:
                    node = Node(is_folder=False)
                    self._change([(folder, name, node)])
                self._open[call.number] = node
            elif call.name == "MKDIR":
                self._change([(folder, name, Node(is_folder=True))])
            elif call.name in ("UNLINK", "RMDIR"):
                self._change([(folder, name, None)])
            else:
                target, new_name = self._folder_of(Path(call.second))
                node = folder.names[name]
                self._change([(folder, name, None), (target, new_name, node)], needs=(folder, name, node))

    def cut(self, place: Path, draw: random.Random | None, *, names: bool = False) -> None:
        """Write what a power cut leaves to a folder.

        draw: what is uncertain is kept or lost by chance; None: all of it is lost, but for names where `names`.
        """
        certain = {}

        def view(node: Node) -> dict[str, Node]:
            return certain.setdefault(id(node), dict(node.certain))

        for change in self._pending:
            kept = names if draw is None else draw.random() < 0.5
            if not kept or (change.needs and view(change.needs[0]).get(change.needs[1]) is not change.needs[2]):
                continue
            for folder, name, node in change.parts:
                view(folder).pop(name, None)
                if node is not None:
                    view(folder)[name] = node

        def write(node: Node, path: Path) -> None:
            if node.is_folder:
                path.mkdir(exist_ok=True)
                for name, child in view(node).items():
                    write(child, path / name)
            elif draw is None or node.data == node.synced:
                path.write_bytes(node.synced)
            else:
                half = node.data[: draw.randrange(len(node.data) + 1)]
                path.write_bytes(draw.choice((node.synced, node.data, half)))

        write(self._root, place)

    def _change(self, parts: list[tuple[Node, str, Node | None]], needs: tuple[Node, str, Node] | None = None) -> None:
        self._pending.append(Change(parts, needs))
        _apply(parts, certain=False)

    def _sync(self, node: Node) -> None:
        node.synced = node.data
        if node.is_folder:
            for change in [one for one in self._pending if any(folder is node for folder, _, _ in one.parts)]:
                self._pending.remove(change)
                _apply(change.parts, certain=True)

    def _folder_of(self, path: Path) -> tuple[Node, str]:
        if path == self._root_path:
            return self._root, "."
        node = self._root
        for name in path.parent.relative_to(self._root_path).parts:
            node = node.names[name]
        return node, path.name


def _apply(parts: Iterable[tuple[Node, str, Node | None]], *, certain: bool) -> None:
    for folder, name, node in parts:
        names = folder.certain if certain else folder.names
        names.pop(name, None)
        if node is not None:
            names[name] = node


def _read(path: Path) -> Node:
    if path.is_dir():
        names = {child.name: _read(child) for child in path.iterdir()}
        return Node(is_folder=True, names=names, certain=dict(names))
    data = path.read_bytes()
    return Node(is_folder=False, data=data, synced=data)
