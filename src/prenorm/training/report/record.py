"""The record of a run, finished or not: what its folder holds, read without its model and without changing anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.files import read_json
from ...errors import CheckpointError, ConfigError
from ..checkpoints import complete_checkpoints
from ..config import read_toml
from ..metrics import Record, read_metrics


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder describes it.

    settings: config.toml, with the model's sizes. steps and evaluations: the lines of metrics.jsonl; `final` is the
    evaluation on all held-out text. result: result.json, None until the run has ended. checkpoints: pairs of a step and
    its bytes on the disk. data: the sentences about what was read and skipped. kept: files with batches that were
    skipped, or whose loss jumped.
    """

    name: str
    settings: Mapping[str, Any]
    steps: list[Record]
    evaluations: list[Record]
    final: Record | None
    skipped: list[Record]
    samples: list[Record]
    result: Mapping[str, Any] | None
    checkpoints: list[tuple[int, int]]
    data: list[str]
    kept: list[str]

    @property
    def newest_step(self) -> int:
        """The last step that was taken or skipped; 0 before the first."""
        return max((record["step"] for record in (*self.steps, *self.skipped)), default=0)


def read_run(folder: Path) -> RunRecord:
    """The record of a run. Raises ConfigError for a folder that holds none, CheckpointError for a broken file."""
    if not (folder / "config.toml").is_file():
        raise ConfigError(
            f"RUN must be the folder of a run, as prenorm train makes it, but {folder} has no config.toml; "
            "runs are in runs/ unless --out said otherwise."
        )
    records = read_metrics(folder / "metrics.jsonl")
    evaluations = [record for record in records if "eval_loss" in record]
    during = [record for record in evaluations if "all_text" not in record]
    newest = max((record["step"] for record in records), default=0)  # a run that was continued has others
    finals = [record for record in evaluations if "all_text" in record and record["step"] == newest]
    return RunRecord(
        name=str(folder),
        settings=read_toml(folder / "config.toml"),
        steps=[record for record in records if "loss" in record],
        evaluations=during,
        final=finals[-1] if finals else None,
        skipped=[record for record in records if "skipped" in record],
        samples=read_metrics(folder / "samples.jsonl"),
        result=_result(folder / "result.json"),
        checkpoints=[(int(path.name.removeprefix("step-")), _size(path)) for path in complete_checkpoints(folder)],
        data=_said(folder / "data"),
        kept=sorted(path.name for path in (folder / "batches").glob("*.json")),
    )


def _result(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    result = read_json(path)
    if not isinstance(result.get("steps"), int):
        raise CheckpointError(f"{path} is not a run's result; delete it, and --resume writes it again.")
    return result


def _said(folder: Path) -> list[str]:
    """The sentences that the data's own record keeps; none for a run that keeps none."""
    for path in (folder / "prepared.json", folder / "data.json"):
        if path.exists() and isinstance(said := read_json(path).get("said"), list):
            return [str(sentence) for sentence in said]
    return []


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
