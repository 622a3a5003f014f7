"""The folder in which a learner works: what it starts with, and where things are."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from .progress import Progress, save

TEMPLATE = Path(__file__).parent / "template"
PROGRESS = "challenge.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where things are in a workspace."""

    folder: Path

    @property
    def layers(self) -> Path:
        """What the learner builds."""
        return self.folder / "cs336_basics" / "layers.py"

    @property
    def progress(self) -> Path:
        """How far the learner is."""
        return self.folder / PROGRESS

    @property
    def harden(self) -> Path:
        """The learner's code with a fault planted into it."""
        return self.folder / "harden" / "layers.py"


def new_workspace(folder: Path) -> Workspace:
    """Write a workspace into a new or empty folder. Raises ConfigError for any other, and overwrites nothing."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"a workspace is a folder, but {folder} is a file; another name would do.")
    if folder.is_dir() and (inside := sorted(path.name for path in folder.iterdir())):
        raise ConfigError(
            f"a new workspace needs an empty folder, but {folder} holds {', '.join(inside[:3])}"
            f"{', ...' if len(inside) > 3 else ''}; another name would do, and nothing was written."
        )
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    workspace = Workspace(folder)
    save(Progress(), workspace.progress)
    return workspace


def open_workspace(folder: Path) -> Workspace:
    """The workspace in a folder. Raises ConfigError when it is none."""
    workspace = Workspace(folder)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; prenorm challenge new {folder} makes a workspace there.")
    if not workspace.progress.is_file():
        raise ConfigError(
            f"{folder.resolve()} is no workspace: it has no {PROGRESS}; go to one, or name it, "
            "or make one with prenorm challenge new DIR."
        )
    if not workspace.layers.is_file():
        raise ConfigError(f"{workspace.layers} is missing; put your file back, a new workspace has an empty one.")
    return workspace
