"""How far a workspace is, told without running anything."""

from typing import Any

from . import progress
from .workspace import Workspace

STAGES = ("build", "justify", "harden")


def status(workspace: Workspace) -> dict[str, Any]:
    """The stage that comes next ("done" at the end), each stage in words, and failed attempts at the planted fault."""
    state = progress.load(workspace.progress)
    passed = (state.build_passed(workspace.layers), state.justify_passed, state.harden_passed)
    build, justify, harden = ("passed" if one else "open" for one in passed)
    if not passed[0] and state.build_sha256 is not None:
        build = "open: layers.py has changed since it passed"
    if not passed[1] and state.questions:
        justify = f"{len(state.questions)} questions open"
    if not passed[2] and state.planted is not None:
        harden = f"a fault waits in {workspace.harden}"
    return {
        "stage": next((stage for stage, done in zip(STAGES, passed, strict=True) if not done), "done"),
        "build": build,
        "justify": justify,
        "harden": harden,
        "failed_attempts": 0 if state.planted is None else state.planted.failed_attempts,
    }
