"""What is fuzzed of a manifest: its entries, and the files that it lists."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prenorm.checkpoint import manifest, sums
from prenorm.checkpoint.manifest import MANIFEST, Listed

from ..checkpoint.hostile.folders import Folder, Link, good, shard_files
from .choices import Choices
from .opening import encoded, open_folder


def fuzz_manifest(data: bytes, folder: Path) -> None:
    """The manifest of a folder, and files that are not as it says. Blocks are short, and small files large ones."""
    choices = Choices(data)
    files = choices.one((good, shard_files))()
    named = {name: content for name, content in files.items() if isinstance(content, bytes)}
    with _short_blocks(choices.one((0, 1000))):
        listed = {name: _listed(content) for name, content in named.items()}
        if choices.below(2):  # as it was before there were blocks
            listed = {name: one._replace(sums="") for name, one in listed.items()}
        fields = json.loads(manifest.manifest_content(listed))
        match choices.below(4):
            case 0:
                files[MANIFEST] = choices.rest()
            case 1:  # damaged, and with a hash that is right
                while choices:
                    fields["files"] = choices.changed(fields["files"], [*files, "../secret", "size", "sha256", "sums"])
                files[MANIFEST] = _signed(fields["files"])
            case 2:
                while choices:
                    fields = choices.changed(fields, [*files, "size", "sha256", "sums"])
                files[MANIFEST] = encoded(fields)
            case _:
                files[MANIFEST] = manifest.manifest_content(listed)
                name, content = choices.one(sorted(named.items()))
                place = choices.below(len(content))
                damage = (content[:place], content[:place] + b"?" + content[place + 1 :], Link(name), Folder())
                files[name] = choices.one(damage)
                if choices.below(3) == 0:
                    files.pop(name)
        open_folder(files, folder)


def _listed(content: bytes) -> Listed:
    hashes = sums.Hashes()
    hashes.update(memoryview(content))
    return manifest._listed(hashes)


def _signed(files: Any) -> bytes:
    """A manifest that lists this, with the hash that belongs to it."""
    plain = json.dumps({"files": files}, indent=2) + "\n"
    whole = {"files": files, "sha256": hashlib.sha256(plain.encode()).hexdigest()}
    return (json.dumps(whole, indent=2) + "\n").encode()


@contextmanager
def _short_blocks(small: int) -> Iterator[None]:
    before = manifest.SMALL, sums.BLOCK, sums.BLOCKS_OF_A_TASK
    manifest.SMALL, sums.BLOCK, sums.BLOCKS_OF_A_TASK = small, 4096, 2
    try:
        yield
    finally:
        manifest.SMALL, sums.BLOCK, sums.BLOCKS_OF_A_TASK = before
