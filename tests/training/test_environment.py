import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from prenorm.errors import ConfigError, DataError
from prenorm.training.config import TrainConfig, read_toml
from prenorm.training.data.baseline import HeldOutText
from prenorm.training.data.stream import TokenStream
from prenorm.training.device import Device
from prenorm.training.display import Display
from prenorm.training.environment import SAMPLE_BYTES, SAMPLES, compare, environment_of
from prenorm.training.loop import train
from prenorm.training.tokens import TextData

HELDOUT = HeldOutText(bytes=1, gzip_bytes=1, xz_bytes=1)
CPU = Device(torch.device("cpu"), torch.float32)


def text(tokens, starts=(0, 2, 4)):
    stream = TokenStream(np.asarray(tokens, np.uint16), np.asarray(starts))
    heldout = TokenStream(np.arange(5, dtype=np.uint16), np.asarray([0, 4]))
    return TextData(Tokenizer(models.BPE()), stream, heldout, HELDOUT)


@pytest.fixture
def here():
    return environment_of(CPU, text([0, 1, 0, 2, 0]))


def test_versions_threads_kernels_and_text_are_recorded(here):
    assert here["torch"] == torch.__version__
    assert here["threads"] == torch.get_num_threads()
    assert {"prenorm", "numpy", "tokenizers", "kernels", "processor"} < here.keys()
    assert json.loads(json.dumps(here)) == here
    assert here == environment_of(CPU, text([0, 1, 0, 2, 0]))


def test_the_same_environment_says_nothing(here, said):
    compare(here, here, Path("step-1"), said.append)
    assert said == []


@pytest.mark.parametrize("name", ["prenorm", "torch", "numpy", "tokenizers", "threads", "kernels", "processor"])
def test_other_versions_and_threads_are_said_with_what_follows(here, said, name):
    compare(here | {name: "1.0"}, here, Path("step-1"), said.append)
    assert f"step-1 was made with {name} 1.0 (now {here[name]})" in said[0]
    assert "last bits" in said[0]


def test_an_unknown_environment_is_said(here, said):
    known = {name: here[name] for name in ("device", "dtype", "text")}
    compare(known, here, Path("step-1"), said.append)
    assert "torch None" in said[0]


@pytest.mark.parametrize(("name", "value"), [("device", "cuda"), ("dtype", "bfloat16")])
def test_another_device_or_number_format_is_refused_by_name(here, name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value} there and {here[name]} here"):
        compare(here | {name: value}, here, Path("step-1"), print)


@pytest.mark.parametrize("other", [text([0, 1, 0, 3, 0]), text([0, 1, 0, 2, 0], (0, 3, 4)), text([0, 1, 0, 2, 0, 0])])
def test_another_text_is_refused(here, other):
    with pytest.raises(ConfigError, match=r"is not what step-1 was trained on; put these files back"):
        compare(environment_of(CPU, other), here, Path("step-1"), print)


def test_of_a_long_text_there_are_samples_from_all_of_it_and_its_end():
    tokens = np.zeros(SAMPLES * SAMPLE_BYTES + 1, np.uint16)
    same = environment_of(CPU, text(tokens))["text"]
    for place in (0, len(tokens) // 2, len(tokens) - 1):
        changed = tokens.copy()
        changed[place // SAMPLE_BYTES * SAMPLE_BYTES :][: SAMPLE_BYTES + 1] += 1
        assert environment_of(CPU, text(changed))["text"] != same


@pytest.fixture
def trained(tiny, texts, tmp_path):
    """Settings of a run of two steps that is done, and of a longer one."""
    own_texts = str(shutil.copytree(texts, tmp_path / "texts"))
    fields = {"data": [own_texts], "decay_share": 0.0, "eval_every": 0, "checkpoint_every": 0}
    train(tiny(steps=2, **fields), display=Display(quiet=True))
    return tiny(steps=2, **fields), lambda **changes: tiny(steps=3, **fields, **changes)


def test_a_run_that_is_refused_is_left_as_it_was(trained):
    config, longer = trained
    with pytest.raises(ConfigError, match=r"checkpoints/step-00000002, but dtype is float32 there and bfloat16 here"):
        train(longer(dtype="bfloat16"), resume=True, display=Display(quiet=True))
    folder = Path(config.out)
    assert TrainConfig.from_fields(read_toml(folder / "config.toml")) == config
    shutil.rmtree(folder / "data")  # so that the text is read anew
    Path(config.data[0], "more.py").write_text("a text that was not there before")
    with pytest.raises(ConfigError, match="what lies in the run's data folder"):
        train(longer(), resume=True, display=Display(quiet=True))


def test_a_run_whose_tokenizer_was_exchanged_is_refused(trained):
    config, longer = trained
    tokenizer = Path(config.out, "tokenizer.json")
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"tokenizer\.json is not that in"):
        train(longer(), resume=True, display=Display(quiet=True))


def test_auto_may_be_named_and_other_threads_are_said(trained, capsys):
    config, longer = trained
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        train(longer(device="cpu", dtype="float32"), resume=True, display=Display())
    finally:
        torch.set_num_threads(threads)
    assert f"was made with threads {threads} (now {threads + 1})" in " ".join(capsys.readouterr().out.split())
    recorded = json.loads((Path(config.out) / "environment.json").read_text())
    assert recorded["threads"] == threads + 1
