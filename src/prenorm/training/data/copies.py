"""Exact copies of held-out documents among those to train on, found by the hashes of their texts."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .reading import count
from .side import TOGETHER


class Texts(NamedTuple):
    """The hash of the text of each document of one side, and what a document is called, by its number."""

    hashes: np.ndarray
    name: Callable[[int], str]


def copies(training: Texts, heldout: Texts) -> str:
    """What is to be said of training documents that are held out as well, "" where there are none."""
    order = np.argsort(heldout.hashes, kind="stable")
    hashes, found, first = heldout.hashes[order], 0, ""
    for start in range(0, len(training.hashes) if len(hashes) else 0, TOGETHER):
        part = training.hashes[start : start + TOGETHER]
        places = np.searchsorted(hashes, part).clip(max=len(hashes) - 1)
        same = np.flatnonzero(hashes[places] == part)
        if len(same) and not first:
            first = f"{training.name(start + int(same[0]))} and {heldout.name(int(order[places[same[0]]]))}"
        found += len(same)
    if not found:
        return ""
    are = "is an exact copy" if found == 1 else "are exact copies"
    return (
        f"{count(found, 'training document')} {are} of held-out ones, such as {first}: they stay on both sides, and "
        "the held-out loss is too good by as much."
    )
