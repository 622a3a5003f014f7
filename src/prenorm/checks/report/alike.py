"""Hand-ins with the same sources, whatever their names: copies, or what all were given."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .handed_in import Submission, listed, sources


def noted(submissions: Sequence[Submission]) -> list[Submission]:
    """The submissions, those that have the sources of others with a note that says whose."""
    keys = [_key(one) for one in submissions]
    marked = []
    for one, key in zip(submissions, keys, strict=True):
        same = [other.name for other, its in zip(submissions, keys, strict=True) if key and its == key and other != one]
        said = f"the same sources as {listed(same)}" if same else ""
        marked.append(replace(one, note="; ".join(filter(None, [one.note, said]))))
    return marked


def _key(submission: Submission) -> tuple[bytes, ...]:
    """What its files have in them, without blanks at their ends; empty if there is nothing to judge."""
    if submission.subject is None or submission.within is None:
        return ()
    within = Path(submission.within)
    try:
        files = sources(within) if within.is_dir() else [within]
        return tuple(sorted(hashlib.sha256(one.read_bytes().strip()).digest() for one in files))
    except OSError:  # the judgement will say so
        return ()
