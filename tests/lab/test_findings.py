"""What the small experiments say of numbers that are made up: each sentence, row and point of the right ones."""

from unittest.mock import MagicMock

import pytest

from prenorm.lab import norm
from prenorm.lab.activation import activation_experiment
from prenorm.lab.checkpointing import EVERY, CheckpointingCell, checkpointing_experiment
from prenorm.lab.comparison import Comparison
from prenorm.lab.folder import open_folder
from prenorm.lab.norm import SpeedCell, norm_experiment
from prenorm.lab.rope import BFLOAT16_ANGLES, BFLOAT16_TABLES, FLOAT32_ANGLES, OURS, RopeCell, rope_experiment
from prenorm.lab.training import TrainingCell
from prenorm.layers.norm import RMSNorm


def reported(experiment, folder, result):
    """The chapters of an experiment whose cells have these results."""
    with open_folder(folder, experiment.name) as cells:
        for ask in (experiment.plan, experiment.timed):
            for cell in ask(cells).cells if ask else ():
                cells.add(cell, result(cell))
        return experiment.report(cells).chapters


def points(chapter, name="plot"):
    """What a picture draws by a method: the arguments, by the label."""
    axes = MagicMock()
    axes.get_ylim.return_value = (0.1, 10.0)
    chapter.drawing.draw(axes)
    return {call.kwargs["label"]: call.args for call in getattr(axes, name).mock_calls}


def measured(chapter):
    return [one.measured.mean for one in chapter.findings]


def compared(other):
    """Trainings in which ours is best at the second rate, the other at the first and 0.25 above ours."""
    comparison = Comparison(ours="pre-norm", other=other, seeds=(0, 1, 2), rates=(1e-3, 1e-2))

    def result(cell):
        if isinstance(cell, SpeedCell):
            return {"rms_norm": 1.0, "layer_norm": speed(cell), "ratio": speed(cell)}
        assert isinstance(cell, TrainingCell)
        losses = {("pre-norm", 1e-3): 3.0, ("pre-norm", 1e-2): 2.0, (other, 1e-3): 2.25, (other, 1e-2): 2.5}
        return {"loss": losses[cell.variant, cell.rate] + cell.seed, "parameters": 7 if cell.variant == other else 5}

    return comparison, result


def speed(cell):
    return cell.tokens / 2 + (0.25 if cell.dtype == "bfloat16" else 0.0)


def check_losses(chapter, ours, other):
    assert measured(chapter) == pytest.approx([0.25])
    assert f"{other} ends 0.25 [0.25, 0.25] nats a byte above {ours}." in chapter.text[0]
    assert [row[:2] for row in chapter.table.rows] == [(ours, 5), (other, 7)]
    assert [row[2].split()[0] for row in chapter.table.rows] == ["4", "3.25"]
    drawn = points(chapter)
    assert {name: list(args[1]) for name, args in drawn.items()} == {ours: [4.0, 3.0], other: [3.25, 3.5]}


def test_norms_are_compared_by_their_own_losses_and_times(tmp_path):
    comparison, result = compared("LayerNorm")
    loss, times = reported(norm_experiment(comparison, shapes=((4, 8), (1, 16))), tmp_path, result)
    check_losses(loss, "RMSNorm", "LayerNorm")
    assert loss.findings[0].verdict == "disagrees"  # that they are within 0.02
    assert measured(times) == [2.0, 2.25, 0.5, 0.75]
    assert [one.verdict for one in times.findings] == ["agrees", "agrees", "disagrees", "disagrees"]
    for finding, name in zip(
        times.findings, ("4 x 8, float32", "4 x 8, bfloat16", "1 x 16, f", "1 x 16, b"), strict=True
    ):
        assert name in finding.claim.text
    assert [row[:3] for row in times.table.rows] == [
        *((4, 8, "float32"), (4, 8, "bfloat16"), (1, 16, "float32"), (1, 16, "bfloat16"))
    ]
    assert [row[3].split()[0] for row in times.table.rows] == ["2", "2.25", "0.5", "0.75"]


def test_a_norms_time_is_its_own(monkeypatch):
    monkeypatch.setattr(norm, "_seconds", lambda one, x, gradient: 1.0 if type(one) is RMSNorm else 3.0)
    found = SpeedCell(tokens=2, d_model=4, dtype="bfloat16", round=0).measure()
    assert found == {"rms_norm": 1.0, "layer_norm": 3.0, "ratio": 3.0}


def test_activations_are_compared_by_their_own_losses(tmp_path):
    comparison, result = compared("GELU")
    (chapter,) = reported(activation_experiment(comparison), tmp_path, result)
    check_losses(chapter, "SwiGLU", "GELU")
    assert chapter.findings[0].verdict == "agrees"


def test_checkpointing_is_told_as_shares_of_a_step_without_it(tmp_path):
    seconds = {0: 2.0, 1: 2.6, 2: 2.4, 4: 2.2, 8: 2.1}
    kept = {0: 400.0, 1: 100.0, 2: 200.0, 4: 300.0, 8: 350.0}

    def result(cell):
        assert isinstance(cell, CheckpointingCell)
        return {
            str(k): {"seconds": seconds[k] * (1 + cell.round), "kept": kept[k] * 2**20, "apart": 0.0} for k in EVERY
        }

    (chapter,) = reported(checkpointing_experiment(rounds=3), tmp_path, result)
    assert measured(chapter) == pytest.approx([0.0, 1.3, 0.5])
    assert [one.verdict for one in chapter.findings] == ["agrees"] * 3
    assert "All blocks: 0.25 [0.25, 0.25] of the memory, 1.3 [1.3, 1.3] of the time." in chapter.text[0]
    assert [row[1] for row in chapter.table.rows] == [kept[k] for k in EVERY]
    assert [[cell.split()[0] for cell in row[2:]] for row in chapter.table.rows] == [
        [f"{kept[k] / 400:.3g}", f"{seconds[k] / 2:.3g}"] for k in EVERY
    ]
    drawn = points(chapter, "errorbar")
    assert drawn["every 2nd block"][:2] == pytest.approx((0.5, 1.2))
    assert drawn["every 8th block"][:2] == pytest.approx((0.875, 1.05))


def test_scores_are_told_by_their_tables_and_positions(tmp_path):
    apart = {OURS: 1e-7, FLOAT32_ANGLES: 1e-3, BFLOAT16_TABLES: 5e-3, BFLOAT16_ANGLES: 0.5}

    def result(cell):
        assert isinstance(cell, RopeCell)
        return {"apart": apart[cell.tables] * (1.0 if cell.position else 0.01)}

    (chapter,) = reported(rope_experiment(positions=(0, 1000)), tmp_path, result)
    assert measured(chapter) == pytest.approx([1e-7, 5e-3, 0.5])
    assert [one.verdict for one in chapter.findings] == ["agrees"] * 3
    for tables, *cells in chapter.table.rows:
        assert [float(cell.split()[0]) for cell in cells] == pytest.approx([apart[tables] / 100, apart[tables]])
    for tables, (x, y, *_) in points(chapter).items():
        assert list(x) == [1, 1000]
        assert list(y) == pytest.approx([apart[tables] / 100, apart[tables]])
