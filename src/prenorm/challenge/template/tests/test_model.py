"""The checks of the challenge, for pytest. What is not written yet is skipped, so that you see what is left."""

from pathlib import Path

import pytest

from prenorm.challenge.build import PARTS, judge_block, judge_parts

LAYERS = Path(__file__).parent.parent / "cs336_basics" / "layers.py"


@pytest.mark.parametrize("name", PARTS)
def test_part(name: str) -> None:
    (part,) = judge_parts(LAYERS, [name])
    if part.is_missing:
        pytest.skip(f"{name}: {part.state}")
    assert part.is_right, part.reason


def test_transformer_block() -> None:
    problems = judge_block(LAYERS)
    assert not problems, "\n" + "\n\n".join(problems)
