"""A small folder of text, and the settings of a run that takes a second on it."""

import functools
import json
import random

import pytest

from prenorm.training.config import TrainConfig

WORDS = [
    "the",
    "a",
    "def",
    "return",
    "import",
    "block",
    "norm",
    "äöü",
    "世界",
    "=",
    "(",
    ")",
    ":",
    "+",
    "\n",
    "\n\n",
    "",
    "",
    "",
    "0",
    "1",
    "42",
    "3.14",
    "#",
    "<|endoftext|>",
    "\r\n",
    "\t",
]


def text_of(seed: int, words: int) -> str:
    """A text that is the same for the same seed."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words)) + "\n"


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of forty texts of all lengths, of which the hash of the names holds some out."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(40):
        path = folder / ("deep" if number % 3 else ".") / f"text{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text_of(number, 3 + 17 * (number % 11)).encode())
    return folder


def tiny_config(texts, out, **fields):
    """Settings for a run of a few steps on these texts; keywords change them."""
    numbers = {
        "preset": "tiny",
        "out": str(out),
        "data": [str(texts)],
        "vocab_size": 280,
        "d_model": 16,
        "context": 16,
        "batch_size": 4,
        "steps": 6,
        "warmup_steps": 2,
        "checkpoint_every": 2,
        "eval_every": 3,
        "dropout": 0.1,
    }
    return TrainConfig.from_fields(numbers | fields)


@pytest.fixture(autouse=True)
def _rate_of_products(monkeypatch):
    """No test but that of the measurement waits for it."""
    monkeypatch.setattr("prenorm.training.trainer.product_rate", lambda device: 1e9)


@pytest.fixture
def tiny(texts, tmp_path):
    """Settings for a run of a few steps in this test's own folder."""
    return functools.partial(tiny_config, texts, out=tmp_path / "run")


@pytest.fixture
def said():
    """Everything that a function said."""
    return []


def losses(run):
    """The metrics of a run, without what depends on the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("tokens_per_second", "mfu_causal", "mfu_6n_attention")
    return [{name: value for name, value in record.items() if name not in timed} for record in records]
