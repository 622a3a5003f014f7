"""Workspaces, and stand-ins for the sandbox and the judge."""

from pathlib import Path

import pytest

from prenorm.challenge import build, submit
from prenorm.challenge.workspace import Workspace, new_workspace

from .fake import judge_numbers, open_local

SOLUTIONS = Path(__file__).parent / "solutions"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A new one."""
    return new_workspace(tmp_path / "mine")


@pytest.fixture
def solved(workspace: Workspace) -> Workspace:
    """One with a right layers.py."""
    workspace.layers.write_text((SOLUTIONS / "plain.py").read_text())
    return workspace


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is trusted is judged here, by its numbers alone: no sandbox, no names of faults."""
    monkeypatch.setattr(submit, "paper_judge", judge_numbers)
    monkeypatch.setattr(build, "paper_judge", judge_numbers)
    monkeypatch.setattr(build, "sandboxed", open_local)
