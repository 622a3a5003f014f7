from matplotlib.image import imread

from prenorm.training.picture import can_draw, draw_losses


def test_a_picture_is_drawn_from_any_records(tmp_path):
    steps = [{"step": step, "loss": 5.0 / step} for step in range(1, 50)]
    evaluation = {"step": 20, "eval_loss": 3.0, "eval_bits_per_byte": 2.0}
    assert can_draw()
    for number, records in enumerate(([], [evaluation], steps[:1], [*steps, evaluation])):
        path = tmp_path / f"{number}.png"
        draw_losses(records, path)
        assert imread(path).shape == (500, 800, 4)
