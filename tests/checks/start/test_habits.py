"""Habits of published code: what a machine lacks, what a package may lack, and arguments of other kinds."""

from pathlib import Path

import pytest

from prenorm.checks.check import check

from ..strangers.projects import HEAD
from .test_start import TAKES, started

LINEAR = "self.part = nn.Linear(d_model, d_model)"
PART = TAKES.format("d_model", LINEAR)


def lines_of(source: str, folder: Path) -> str:
    return started(HEAD + source, folder).learner.recipe.build.written()


@pytest.mark.parametrize(
    ("signature", "part", "line"),
    [
        ("d_model, dtype=torch.bfloat16", "self.part = nn.Linear(d_model, d_model, dtype=dtype)", "dtype=dtype"),
        ("d_model, dtype=torch.float32", "self.part = nn.Linear(d_model, d_model, dtype=dtype)", "d_model=d_model)"),
        ("d_model, fused=True", f"assert not fused, 'no kernel'\n        {LINEAR}", "fused=False"),
        ("d_model, fused=True", LINEAR, "d_model=d_model)"),
        ("d_model, side: Side = Side.LEFT", f"side.name\n        {LINEAR}", "d_model=d_model)"),
        ("d_model, side: Side", f"side.name\n        {LINEAR}", "side=[*Side][0]"),
        ("dim, ff_mult: int", "self.part = nn.Linear(dim, dim * ff_mult // 4)", "ff_mult=4"),
        ("dim, mlp_ratio: int = 1", "self.part = nn.Linear(dim, dim * mlp_ratio // 4)", "mlp_ratio=4"),
        ("dim, mlp_ratio: int = 4", "self.part = nn.Linear(dim, dim * mlp_ratio // 4)", "Block(dim=d_model)"),
        ("n_embd, hidden_size", "self.part = nn.Linear(n_embd, hidden_size)", "hidden_size=d_ff"),
        ("hidden_size", "self.part = nn.Linear(hidden_size, hidden_size)", "hidden_size=d_model"),
        ("d_in, d_model", "self.part = nn.Linear(d_in, d_model)", "d_in=d_model"),
        ("input_dim=None, output_dim=None", "self.part = nn.Linear(input_dim, output_dim)", "output_dim=d_model"),
        ("num_heads, n_kv_heads, n_kv_groups, d_model",
         f"assert num_heads == n_kv_heads * n_kv_groups\n        {LINEAR}",
         "n_kv_groups=num_heads // num_kv_heads"),
        ("config", "assert config.heads == config.n_kv_heads * config.n_kv_groups\n        "
         "self.part = nn.Linear(config.dim, 9)", "n_kv_groups=num_heads // num_kv_heads"),
        ("num_heads, n_kv_groups, d_model", LINEAR, "n_kv_groups=num_kv_heads"),
        ("d, n, p=0.1", "assert d % n == 0\n        self.part = nn.Linear(d, d)", "Block(d_model, num_heads)"),
        ("decoder_config", "self.part = nn.Linear(decoder_config.dim, 9)", "decoder_config=config(dim=d_model)"),
    ],
)  # fmt: skip
def test_arguments_of_other_kinds_are_understood(signature: str, part: str, line: str, tmp_path: Path) -> None:
    side = "import enum\n\n\nclass Side(enum.Enum):\n    LEFT = 1\n    RIGHT = 2\n"
    assert line in lines_of(side + TAKES.format(signature, part), tmp_path)


def test_a_ratio_of_a_configuration_that_must_be_an_integer_is_one(tmp_path: Path) -> None:
    config = (
        "from typing import NamedTuple\n\n\nclass Config(NamedTuple):\n"
        "    dim: int = 768\n    n_heads: int = 12\n    ff_mult: int = 4\n"
    )
    part = (
        "width = config.dim * config.ff_mult\n        "
        "self.part = nn.Sequential(nn.Linear(config.dim, width), nn.Linear(width, config.dim))"
    )
    assert "ff_mult=4" in lines_of(config + TAKES.format("config: Config", part), tmp_path)


SCRIPTED = (
    "@torch.jit.script\ndef angles(n: int):\n    return torch.arange(n).unsqueeze(1) * torch.zeros(n, device='cpu')\n"
)


def test_functions_for_torchscript_may_make_tensors(tmp_path: Path) -> None:
    assert lines_of(SCRIPTED + PART, tmp_path) == "Block(d_model=d_model)"


@pytest.mark.parametrize(
    "line",
    [
        "assert torch.cuda.is_available(), 'this is for a GPU'",
        "if not torch.cuda.is_available():\n    raise RuntimeError('CUDA is required')",
        "index = torch.cuda.current_device()",
    ],
)
def test_a_gpu_that_is_asked_for_and_not_there_is_no_fault(line: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(f"{HEAD}\n{line}\n{PART}")
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["import_error"], (), 2)
    assert "a GPU is asked for" in verdict.findings[0].evidence


READY = "from importlib.util import find_spec\n\nREADY = find_spec('torch') and find_spec('zorklightning')\n"
CAUGHT = "try:\n    import zorklightning\n\n    READY = True\nexcept ImportError:\n    READY = False\n"


def project(folder: Path, files: dict[str, str]) -> str:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return f"{folder}/mine/model.py:Block"


@pytest.mark.parametrize("asks", [READY, CAUGHT])
@pytest.mark.parametrize("name", ["Info", "Inof"])
def test_a_name_that_a_package_defines_where_another_is_installed(asks: str, name: str, tmp_path: Path) -> None:
    files = {
        "mine/__init__.py": "",
        "mine/ready.py": asks,
        "mine/data/__init__.py": "from mine.ready import READY\n\nif READY:\n    from .schema import Info\n",
        "mine/data/schema.py": "class Info: ...\n",
        "mine/model.py": f"from mine.data import {name}\n{HEAD}{PART}",
    }
    verdict = check(project(tmp_path, files))
    assert verdict.ids == ["import_error"]
    assert verdict.exit_code == (2 if name == "Info" else 1)  # the other is misspelt
    assert ("zorklightning" in verdict.findings[0].evidence) is (name == "Info")


def test_a_name_of_a_missing_package_that_everything_is_taken_from(tmp_path: Path) -> None:
    files = {
        "mine/__init__.py": "from zorkthing.parts import *\nfrom .tools import *\n",
        "mine/tools.py": "from . import logs\n\nlog = logs.get(__name__)\n",
        "mine/model.py": f"from . import tools\n{HEAD}{PART}",
    }
    verdict = check(project(tmp_path, files))
    assert (verdict.ids, verdict.exit_code) == (["import_error"], 2)
    assert "zorkthing.parts.logs" in verdict.findings[0].evidence


def test_a_folder_of_a_package_is_not_the_missing_package_of_its_name(tmp_path: Path) -> None:
    files = {
        "mine/__init__.py": "",
        "mine/settings.py": "import datasets\n\n\nclass Train: ...\n",
        "mine/datasets/__init__.py": "from . import web\n",
        "mine/datasets/web.py": "import datasets\nfrom mine.settings import Train\n",
        "mine/model.py": f"from .settings import Train\n{HEAD}{PART}",
    }
    verdict = check(project(tmp_path, files))
    assert "import_error" not in verdict.ids
    assert "datasets: not installed here" in str(verdict.conventions["at_import"])


SIDES = {
    "block(x)": "m = torch.zeros(x.shape[1], x.shape[1])",
    "swapped(block)(x)": "m = torch.full((len(x), len(x)), -torch.inf).triu(1)",
}


@pytest.mark.parametrize("call", SIDES)
def test_the_sides_of_a_mask_say_which_axis_is_the_sequence(call: str, tmp_path: Path) -> None:
    block = (
        "\n\nclass Block(nn.Module):\n    def __init__(self, d_model, num_heads):\n        super().__init__()\n"
        f"        self.part = nn.MultiheadAttention(d_model, num_heads, batch_first={call == 'block(x)'})\n\n"
        f"    def forward(self, x):\n        {SIDES[call]}\n"
        "        return x + self.part(x, x, x, attn_mask=m.to(x), need_weights=False)[0]\n"
    )
    case = started(HEAD + block, tmp_path, text=HEAD + block)
    assert case.learner.recipe.call.written() == call


def test_an_entry_that_a_given_line_lacks_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(HEAD + TAKES.format("args", "self.part = nn.Linear(args.dim, args.strange)"))
    verdict = check(f"{tmp_path}/model.py:Block", build="Block(config())")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)
    assert "'strange'" in verdict.findings[0].evidence


ABSTRACT = """\
from abc import ABC, abstractmethod


class Attention(nn.Module, ABC):
    @abstractmethod
    def forward(self, x): ...


class Block(nn.Module):
    def __init__(self, d_model, attention: Attention):
        super().__init__()
        self.attention, self.norm = attention, nn.LayerNorm(d_model)

    def forward(self, x):
        return x + self.attention(self.norm(x))
"""


def test_an_abstract_part_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "learner.py").write_text(HEAD + ABSTRACT)
    verdict = check(f"{tmp_path / 'learner.py'}:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)


def test_a_folder_in_a_folder_that_is_not_made_is_not_made_either(tmp_path: Path) -> None:
    make = "    (Path(__file__).parent / name).mkdir(parents=True, exist_ok=True)\n"
    made = "from pathlib import Path\nfor name in ('out', 'out/logs'):\n" + make
    (tmp_path / "learner.py").write_text(HEAD + made + TAKES.format("d_model", LINEAR))
    verdict = check(f"{tmp_path / 'learner.py'}:Block")
    assert "import_error" not in verdict.ids
    assert not (tmp_path / "out").exists()
