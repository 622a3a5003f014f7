"""A run's folder, written by hand: what a report reads of it, and nothing else."""

import json
from pathlib import Path

from prenorm.training.config import TrainConfig, config_to_toml


def write_run(folder: Path, *, finished: bool = True, sample: str = " a tail", **settings) -> Path:
    """Four steps, the third left out, an evaluation after each second one, a sample, a checkpoint, a spike."""
    (folder / "checkpoints/step-00000004").mkdir(parents=True)
    (folder / "checkpoints/step-00000004/model.safetensors").write_bytes(b"0123456789")
    (folder / "config.toml").write_text(config_to_toml(TrainConfig.from_fields({"preset": "tiny", **settings})))
    numbers = {"lr": 0.01, "grad_norm": 2.0, "tokens_per_second": 1000.0, "mfu_causal": 0.5}
    records = [
        *({"step": step, "loss": 6.0 - step, **numbers} for step in (1, 2)),
        {"step": 2, "eval_loss": 4.0, "eval_bits_per_byte": 2.0},
        {"step": 3, "skipped": "the loss is nan"},
        {"step": 4, "loss": 2.0, **numbers},
        {"step": 4, "eval_loss": 3.5, "eval_bits_per_byte": 1.75},
    ]
    if finished:
        records.append({"step": 4, "eval_loss": 3.25, "eval_bits_per_byte": 1.5, "all_text": True})
        result = {"steps": 4, "parameters": 1234, "xz_bits_per_byte": 1.2, "training_seconds": 3.0}
        (folder / "result.json").write_text(json.dumps({**result, "prompt": "def ", "sample": sample}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "samples.jsonl").write_text(json.dumps({"step": 2, "prompt": "def ", "text": sample}) + "\n")
    (folder / "data").mkdir()
    (folder / "data/data.json").write_text(json.dumps({"said": ["Read 2 documents."]}))
    (folder / "batches").mkdir()
    (folder / "batches/spike-step-00000004.json").write_text("{}")
    return folder
