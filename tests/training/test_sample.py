import dataclasses

import pytest

from prenorm.training.build import build_model
from prenorm.training.sample import prompt_of, sample
from prenorm.training.tokens import prepare_text


@pytest.mark.parametrize("room", [1, 3])
@pytest.mark.parametrize("is_own_text", [True, False])
def test_a_model_with_little_room_goes_on_from_a_shorter_prompt(tiny, tmp_path, room, is_own_text):
    config = tiny(context=room)
    data = prepare_text(config, tmp_path, lambda _: None)
    config = config if is_own_text else dataclasses.replace(config, data=())
    prompt = prompt_of(config, data)
    assert len(data.tokenizer.encode(prompt).ids) <= room
    assert prompt or room == 1 or is_own_text  # whose first character takes three tokens
    assert sample(build_model(config, data).eval(), config, data)["prompt"] == prompt


def test_a_prompt_is_the_first_line_of_a_text_however_lines_end(tiny, tmp_path):
    for name, end in (("unix", "\n"), ("windows", "\r\n"), ("mac", "\r")):
        text = tmp_path / name / "a.txt"
        text.parent.mkdir()
        text.write_text("".join(f"line {end}" for _ in range(400)), newline="")
        config = tiny(data=[str(text)])
        data = prepare_text(config, tmp_path / f"run-{name}", lambda _: None)
        assert prompt_of(config, data) == "line"
