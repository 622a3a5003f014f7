"""N steps are k steps, a kill, and the rest: weights, optimiser, random state, batches and losses, bit for bit."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

OPTIMIZERS: dict[str, Any] = {"muon": {"optimizer": "muon"}, "adamw": {"optimizer": "adamw", "weight_decay": 0.1}}
FORMATS: dict[str, Any] = {name: {"dtype": name} for name in ("float32", "bfloat16", "bfloat16-pure", "float16")}
WAYS: dict[str, Any] = {
    "plain": {"dropout": 0.0},
    "dropout": {"dropout": 0.2},
    "accumulated, checkpointed, averaged": {
        "micro_batch_size": 2,
        "checkpoint_activations": True,
        "ema_decay": 0.99,
    },
    "short rows first, another schedule": {"short_context": 8, "schedule": "cosine", "ema_decay": 0.9},
    "evaluated, the best kept": {"eval_every": 9, "early_stop": 1000, "sample_every": 50},
}
EVERY = {
    ", ".join(names): {**OPTIMIZERS[names[0]], **FORMATS[names[1]], **WAYS[names[2]]}
    for names in itertools.product(OPTIMIZERS, FORMATS, WAYS)
}
SAMPLE = ("muon, float32, accumulated, checkpointed, averaged", "adamw, float16, dropout")
COMPILED = {
    "muon, compiled": {"compile": True, "dtype": "float32"},
    "adamw, compiled, bfloat16": {"compile": True, "optimizer": "adamw", "dtype": "bfloat16", "micro_batch_size": 2},
} | {
    f"{name}, compiled, float16, accumulated, checkpointed, averaged": {
        **OPTIMIZERS[name],
        **FORMATS["float16"],
        **WAYS["accumulated, checkpointed, averaged"],
        "compile": True,
    }
    for name in OPTIMIZERS
}


def assert_resumed_runs_are_whole(texts, tmp_path, runs, *, before, after):
    asked = {"texts": str(texts), "work": str(tmp_path), "runs": runs, "before": before, "after": after}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.resumed", str(tmp_path / "asked.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(runs)


def test_a_run_that_was_killed_goes_on_bit_for_bit(texts, tmp_path):
    runs = {name: EVERY[name] for name in SAMPLE}
    # By step 6 float16's loss scale has fallen as far as it must, and the steps are counted after which it rises.
    assert_resumed_runs_are_whole(texts, tmp_path, runs, before=6, after=8)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_way_to_train_goes_on_bit_for_bit_for_two_hundred_steps(texts, tmp_path, optimizer):
    runs = {name: fields for name, fields in EVERY.items() if name.startswith(optimizer)}
    assert_resumed_runs_are_whole(texts, tmp_path, runs, before=30, after=200)


@pytest.mark.slow
def test_compiled_blocks_go_on_bit_for_bit_for_two_hundred_steps(texts, tmp_path):
    assert_resumed_runs_are_whole(texts, tmp_path, COMPILED, before=30, after=200)
