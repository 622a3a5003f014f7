import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from prenorm.cli import cost
from prenorm.distributed.layout import Layout
from prenorm.training.config import TrainConfig

SCRIPT = Path(__file__).resolve().parents[2] / "examples/slurm/train.sbatch"


def flags_of(command):
    """The flags of a command of the script, with its variables filled in."""
    text = SCRIPT.read_text().replace("\\\n", " ")
    variables = {**dict(re.findall(r'^(\w+)="([^"$]*)"$', text, re.MULTILINE)), "GPUS": "1024", "RESUME": ""}
    variables |= {"LAYOUT": re.search(r"LAYOUT:-(.*)\}", text)[1], "DATA": "/tokens", "RUN": "/run"}
    (line,) = re.findall(rf"prenorm {command} (.*)", re.sub(r"#.*", "", text))
    return re.sub(r'"?\$(\w+)"?', lambda found: variables[found[1]], line).split()


def test_the_script_parses():
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True).stderr == ""


@pytest.mark.long
def test_its_layout_fits_and_its_flags_exist(capsys):
    flags = cost.parse(flags_of("cost"))
    assert cost.run(flags) == 0
    assert "1,024 x h100-sxm" in capsys.readouterr().out
    assert (flags.dp, flags.fsdp) == (2, 512)


def test_it_trains_with_settings_that_exist_and_with_the_batch_that_it_asked_the_cost_of():
    words = flags_of("train")
    names = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    settings = {field.name for field in dataclasses.fields(TrainConfig)} | set(Layout.__dataclass_fields__)
    assert names <= settings
    given = dict(zip(words, [*words[1:], ""], strict=True))
    asked = cost.parse(flags_of("cost"))
    assert [asked.batch, asked.micro_batch_size, asked.context] == [
        int(given[name]) for name in ("--batch-size", "--micro-batch-size", "--context")
    ]
