"""What the arguments of forward get."""

import re
from pathlib import Path

import pytest

from prenorm.checks.check import check
from prenorm.checks.start.refusals import UnknownArgumentsError

from ..strangers.projects import HEAD
from .test_start import TAKES, started

CALLS = {
    "*, x": "block(x=x)",
    "*, x, mask": "block(x=x, mask=mask)",
    "*, mask, x": "block(x=x, mask=mask)",
    "mask, hidden_states": "block(hidden_states=x, mask=mask)",
    "y, x=None": "block(x)",
}


@pytest.mark.parametrize("takes", CALLS)
def test_the_input_goes_where_its_name_stands(takes: str, tmp_path: Path) -> None:
    name = "hidden_states" if "hidden" in takes else "y" if "y" in takes else "x"
    block = TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)").replace("part(x)", f"part({name})")
    masked = f"\n        {name} = {name} * mask.float().mean()" if "mask" in takes else ""
    source = HEAD + block.replace("forward(self, x):", f"forward(self, {takes}):{masked}")
    assert started(source, tmp_path).learner.recipe.call.written() == CALLS[takes]


IMAGES = {
    "(batch, height, width, channels)": ("", ""),
    "(batch, channels, height, width)": (".movedim(1, -1)", ".movedim(-1, 1)"),
}


@pytest.mark.parametrize("axes", IMAGES)
def test_a_block_of_images_is_not_judged(axes: str, tmp_path: Path) -> None:
    before, after = IMAGES[axes]
    pixels = f"b, h, w, c = x{before}.shape\n        y = self.part(x{before}).flatten(1, 2).cumsum(1)"
    block = TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)")
    source = HEAD + block.replace("return self.part(x)", f"{pixels}\n        return y.unflatten(1, (h, w)){after}")
    with pytest.raises(UnknownArgumentsError, match=re.escape(axes)):
        started(source, tmp_path)
    (tmp_path / "model.py").write_text(source)
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)


def test_a_block_of_several_leading_dims_is_no_block_of_images(tmp_path: Path) -> None:
    block = TAKES.format("d_model, num_heads, d_ff", "self.part = nn.Linear(d_model, d_model)")
    source = HEAD + block.replace("return self.part(x)", "b, n, s, d = x.shape\n        return self.part(x).cumsum(2)")
    (tmp_path / "model.py").write_text(source)
    assert check(f"{tmp_path}/model.py:Block").ids == ["forward_error"]
