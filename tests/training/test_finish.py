import json

import pytest

from prenorm.errors import CheckpointError
from prenorm.training.display import Display
from prenorm.training.finish import Result, finished_result, show

RESULT = Result(
    run="runs/a b",
    steps=6,
    parameters=1_900_000,
    training_seconds=247.0,
    eval_loss=2.5,
    eval_bits_per_byte=1.0951,
    gzip_bits_per_byte=1.71,
    xz_bits_per_byte=1.33,
    prompt="def ",
    sample="[f](x): ...",
    command="prenorm generate 'runs/a b' --prompt 'def '",
)


def test_what_was_reached_stands_beside_the_compressors(capsys):
    show(RESULT, Display())
    text = capsys.readouterr().out
    for part in ("1,900,000 parameters after 4:07", "2.500 nats per token", "1.095 bits per byte", "1.710", "1.330"):
        assert part in text
    assert "def [f](x): ..." in text
    assert text.rstrip().endswith("prenorm generate 'runs/a b' --prompt 'def '")


def test_only_a_result_of_all_steps_ends_a_run(tiny, tmp_path):
    assert finished_result(tmp_path, tiny()) is None
    (tmp_path / "result.json").write_text(json.dumps({name: getattr(RESULT, name) for name in RESULT.__slots__}))
    assert finished_result(tmp_path, tiny(steps=6)) == RESULT
    assert finished_result(tmp_path, tiny(steps=7)) is None


def test_a_result_that_is_none_is_refused(tiny, tmp_path):
    (tmp_path / "result.json").write_text('{"steps": 6}')
    with pytest.raises(CheckpointError, match=r"result\.json is not a run's result"):
        finished_result(tmp_path, tiny())
