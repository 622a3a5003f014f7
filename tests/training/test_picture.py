import sys

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from prenorm.training.picture import draw_losses, line, smoothed


def test_a_picture_is_drawn_from_any_records(tmp_path, said):
    steps = [{"step": step, "loss": 5.0 / step} for step in range(1, 50)]
    evaluation = {"step": 20, "eval_loss": 3.0, "eval_bits_per_byte": 2.0}
    for number, records in enumerate(([], [evaluation], steps[:1], [*steps, evaluation])):
        path = tmp_path / f"{number}.png"
        draw_losses(records, path, said.append)
        assert imread(path).shape == (500, 800, 4)
    assert not said


def test_without_matplotlib_the_run_goes_on_and_says_how_to_get_it(tmp_path, monkeypatch, said):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    draw_losses([], tmp_path / "loss.png", said.append)
    assert "pip install 'prenorm[plot]'" in said.pop()
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("looked", [[(2, 1.9), (4, 1.5)], []])
def test_the_held_out_curve_is_of_one_text(tmp_path, monkeypatch, said, looked):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *points, **style: drawn.append((style, points)) or plot(self, *points, **style)
    )
    looks = [{"step": step, "eval_loss": bits, "eval_bits_per_byte": bits} for step, bits in looked]
    full = {"step": 4, "eval_loss": 9.0, "eval_bits_per_byte": 9.0, "all_text": True}
    draw_losses([{"step": 1, "loss": 3.0}, *looks, full], tmp_path / "loss.png", said.append)
    (points,) = [points for style, points in drawn if style["label"] == "held-out text"]
    assert list(zip(*points, strict=True)) == (looked or [(4, 9.0)])


@pytest.mark.parametrize(("steps", "lag"), [(1, 0), (10, 0), (40, 3), (100, 9), (1000, 19)])
def test_a_smoothed_loss_lags_behind_by_a_tenth_of_a_run_and_by_twenty_steps_at_most(steps, lag):
    last, mean = smoothed([(step, -float(step)) for step in range(1, steps + 1)])[-1]
    assert last == steps
    assert mean + steps == pytest.approx(lag, abs=0.01)


def test_a_run_of_one_step_shows_a_point():
    axes = Figure().add_subplot()
    for points in ([(1, 5.0)], [(1, 5.0), (2, 4.0)]):
        line(axes, points)
    assert [one.get_marker() for one in axes.lines] == ["o", ""]
