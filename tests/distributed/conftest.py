"""A text, and the flags of a small run on it."""

import pytest

from ..training.conftest import text_of


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of texts, of which some are held out."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(30):
        (folder / f"text{number}.txt").write_text(text_of(number, 20 + 17 * (number % 7)))
    return folder


@pytest.fixture
def flags(texts, tmp_path):
    """Of a run of six steps in this test's own folder."""
    return run_flags(texts, tmp_path / "run")


def run_flags(texts, out):
    """The flags of a run of six steps."""
    sizes = "--preset tiny --vocab-size 280 --d-model 16 --context 16 --batch-size 8 --steps 6 --num-layers 2"
    rates = "--optimizer adamw --lr 0.01 --warmup-steps 2 --eval-every 3 --checkpoint-every 2 --log-seconds 0"
    return [*f"{sizes} {rates}".split(), "--data", texts, "--out", out]
