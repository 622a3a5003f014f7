"""What the arguments of forward get."""

from pathlib import Path

import pytest

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
