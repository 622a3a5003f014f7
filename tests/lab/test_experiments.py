"""The small experiments, tiny: norm, activation, checkpointing and rope."""

import json

import pytest

from prenorm.lab.activation import COMPARISON, activation_experiment
from prenorm.lab.checkpointing import checkpointing_experiment
from prenorm.lab.comparison import Comparison
from prenorm.lab.folder import open_folder
from prenorm.lab.model import Sizes
from prenorm.lab.norm import norm_experiment
from prenorm.lab.rope import BFLOAT16_ANGLES, OURS, rope_experiment

from .measured import measured

TINY = {
    "seeds": (0, 1),
    "rates": (1e-3, 1e-2),
    "depth": 1,
    "warmup": 1,
    "steps": 3,
    "sizes": Sizes(d_model=8, num_heads=2, d_ff=8, batch=2, context=8),
}


def verdicts(record):
    return {one["claim"]: one["verdict"] for one in record["findings"]}


def test_norms_are_compared_in_loss_and_in_time(tmp_path):
    comparison = Comparison(ours="pre-norm", other="LayerNorm", **TINY)
    record = measured(norm_experiment(comparison, shapes=((4, 8),)), tmp_path)
    loss, speed = record["chapters"]
    assert [row[0] for row in loss["rows"]] == ["RMSNorm", "LayerNorm"]
    assert [row[:3] for row in speed["rows"]] == [[4, 8, "float32"], [4, 8, "bfloat16"]]
    assert len(record["findings"]) == 3
    assert (tmp_path / "norm.html").is_file()
    assert len((tmp_path / "trainings.csv").read_text().splitlines()) == 1 + 2 * 2 * 2
    assert len((tmp_path / "speeds.csv").read_text().splitlines()) == 1 + 2 * 5


def test_activations_are_compared_at_equal_parameters(tmp_path):
    comparison = Comparison(ours="pre-norm", other="GELU", **TINY)
    record = measured(activation_experiment(comparison), tmp_path)
    ((swiglu, count, *_), (gelu, other, *_)) = record["chapters"][0]["rows"]
    assert (swiglu, gelu) == ("SwiGLU", "GELU")
    assert count == other


def test_a_difference_is_that_of_the_same_seeds_each_at_its_best_rate(tmp_path):
    comparison = Comparison(ours="pre-norm", other="GELU", **TINY)
    losses = {("pre-norm", 1e-3): (5.0, 6.0), ("pre-norm", 1e-2): (1.0, 2.0), ("GELU", 1e-3): (1.5, 2.7)}
    with open_folder(tmp_path, "test") as cells:
        for cell in comparison.cells():
            found = losses.get((cell.variant, cell.rate))
            cells.add(cell, {"loss": found and found[cell.seed], "parameters": 1})
        assert comparison.difference(cells).mean == pytest.approx(0.6)


def test_a_first_look_is_smaller_and_seeds_follow_the_first():
    assert COMPARISON.at(3, quick=False).seeds == (3, 4, 5, 6, 7)
    quick = COMPARISON.at(3, quick=True)
    assert quick.seeds == (3, 4, 5)
    assert quick.steps < COMPARISON.steps


def test_checkpointing_keeps_less_and_changes_no_bit(tmp_path):
    record = measured(checkpointing_experiment(layers=4, d_model=8, rows=1, context=8, rounds=2), tmp_path)
    assert verdicts(record)["the gradients are the same, bit for bit, with dropout on"] == "agrees"
    names, kept, *_ = zip(*record["chapters"][0]["rows"], strict=True)
    assert names == ("none", "every block", "every 2nd block", "every 4th block", "every 8th block")
    assert kept[1] < kept[2] < kept[3] < kept[4] == kept[0]  # of 4 blocks none is the 8th


def test_scores_see_distances_alone_and_angles_in_bfloat16_lose_far_positions(tmp_path):
    record = measured(rope_experiment(positions=(0, 100_000)), tmp_path)
    assert set(verdicts(record).values()) == {"agrees"}
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    apart = {(one["cell"]["tables"], one["cell"]["position"]): one["result"]["apart"] for one in cells}
    assert apart[OURS, 100_000] < 1e-6
    assert apart[BFLOAT16_ANGLES, 0] < 0.1 < apart[BFLOAT16_ANGLES, 100_000]
