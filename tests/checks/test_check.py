"""The checker itself: one block of every fault, right blocks, the command line; measure.py has all of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prenorm import TransformerBlock
from prenorm.checks.check import check
from prenorm.checks.faults import CONVENTIONS, FAULTS
from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code, locate
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.subject.protocol import EndedError
from prenorm.checks.targets import TARGETS
from prenorm.cli import main as command
from prenorm.errors import ConfigError
from prenorm.testing import assert_block_correct

from . import small
from .corpus import Example, faulty, right
from .measure import Judged, judged, judging_processes

# Found, and not named: as many heads as a head should have dimensions, with tables for the wrong size.
UNNAMED = {"einsums/wrong_head_split.heads_and_sizes_swapped"}


def one_of_each_fault() -> list[Example]:
    """A block for every fault, of one style after the other."""
    by_fault: dict[str, list[Example]] = {}
    for example in faulty():
        if len(example.faults) == 1 and "timeout" not in example.faults and example.name not in UNNAMED:
            by_fault.setdefault(next(iter(example.faults)), []).append(example)
    return [examples[number % len(examples)] for number, examples in enumerate(by_fault.values())]


FAULTY = one_of_each_fault()
RIGHT = right()[::4]


@pytest.fixture(scope="module")
def judged_apart() -> Iterator[Callable[[Example], Judged]]:
    """Judges in a process of its own, where no type checker slows the search."""
    with judging_processes(1) as pool:
        yield lambda example: pool.submit(judged, example, local=True, seed=0).result()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with a right block in it."""
    source = next(one for one in right() if one.name == "course/right").source
    (tmp_path / "layers.py").write_text(source)
    return tmp_path


@pytest.mark.sampled(4)
@pytest.mark.parametrize("example", FAULTY, ids=lambda one: one.name)
def test_a_fault_is_named(example: Example, judged_apart: Callable[[Example], Judged]) -> None:
    assert example.faults <= set(judged_apart(example).ids)


@pytest.mark.parametrize("example", RIGHT, ids=lambda one: one.name)
def test_a_right_block_has_no_fault(example: Example, judged_apart: Callable[[Example], Judged]) -> None:
    assert judged_apart(example).counting == ()


def test_every_fault_says_what_it_means_and_how_to_mend_it() -> None:
    assert all(fault.meaning and fault.mend for fault in FAULTS.values())
    assert set(FAULTS) > CONVENTIONS


MET_WITH: dict[str, dict[str, bool]] = {
    "paper": {},
    "llama": {"causal": True, "rope_interleaved": False},
    "qwen2": {"causal": True, "rope_interleaved": False, "qkv_bias": True},
    "qwen3": {"causal": True, "rope_interleaved": False, "qk_norm": True},
    "gpt-neox": {"causal": True, "rope_interleaved": False, "qkv_bias": True, "o_bias": True},
    "cs336": {"causal": True},
    "llama-original": {"causal": True},
    "causal": {"causal": True},
}
OPEN = ("causal", "gpt-neox")
"""Targets that blocks of others meet as well."""


@pytest.mark.sampled(8)
@pytest.mark.parametrize("target", TARGETS)
def test_our_own_block_meets_every_target(target: str) -> None:
    options: Any = MET_WITH[target]

    class Block(TransformerBlock):
        def __init__(self, d_model: int, num_heads: int, d_ff: int, max_seq_len: int = 64, dtype=None) -> None:
            super().__init__(d_model, num_heads, d_ff, max_seq_len, dtype=dtype, **options)

    assert assert_block_correct(Block, target=target).passed
    also = (options, options | {"causal": True})  # a block that is not causal is handed the causal mask
    others = [name for name in TARGETS if MET_WITH[name] not in also and name not in OPEN]
    assert not any(judge(LocalSubject(Block), _code("Block"), target=other).passed for other in others)


def _code(name: str) -> Code:
    return Code(root="", module="here", file=None, name=name)


@pytest.mark.long
def test_numbers_are_drawn_afresh_and_by_seed() -> None:
    inputs = []

    class Recording(LocalSubject):
        def ask(self, request):
            if request["op"] == "run":
                inputs[-1].append(request["inputs"][0])
            return super().ask(request)

    for seed in (None, None, 1, 1):
        inputs.append([])
        judge(Recording(TransformerBlock), _code("TransformerBlock"), seed=seed)
    assert not torch.equal(inputs[0][0], inputs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(inputs[2], inputs[3], strict=True))


def test_one_line_in_a_projects_own_tests() -> None:
    class Detached(TransformerBlock):
        def forward(self, x: Any, token_positions: Any = None) -> Any:
            x = x.detach() + self.attn(self.norm1(x), token_positions)
            return x + self.ffn(self.norm2(x))

    with pytest.raises(AssertionError, match=r"has faults:\n  residual_detached: "):
        assert_block_correct(Detached)
    assert_block_correct(Detached, allow=("residual_detached",))
    with pytest.raises(ConfigError, match="must be a class or a function that builds a block"):
        assert_block_correct(TransformerBlock(32, 4, 56))
    with pytest.raises(ConfigError, match="target must be one of paper"):
        assert_block_correct(TransformerBlock, target="gpt")


def test_a_name_in_place_of_a_class_is_refused(shapes_unchecked):
    name: Any = "TransformerBlock"
    with pytest.raises(ConfigError, match="builds a block, not 'TransformerBlock'"):
        assert_block_correct(name)


def test_the_command_says_yes_with_exit_code_0(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", f"{workspace / 'layers.py'}:TransformerBlock", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["passed"]
    assert verdict["findings"] == []
    assert verdict["conventions"]["causal"] is True
    assert {one["result"] for one in verdict["checks"]} <= {"passed", "not applicable"}


def test_the_command_names_a_fault_with_exit_code_1(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = workspace / "layers.py"
    file.write_text(file.read_text().replace("silu(self.w1(x)) * self.w3(x)", "silu(self.w1(x) * self.w3(x))"))
    assert command.main(["check", f"{file}:TransformerBlock", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["id"] == "gate_after_product"
    assert set(finding) == {"id", "message", "evidence", "mend", "where", "counts"}
    assert command.main(["check", f"{file}:TransformerBlock"]) == 1
    assert "gate_after_product" in capsys.readouterr().out


def test_the_command_takes_lines_that_build_and_call(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = workspace / "layers.py"
    lines = ["--build", "TransformerBlock(d_model, num_heads, d_ff * 1)", "--call", "block(x)"]
    assert command.main(["check", f"{file}:TransformerBlock", "--json", *lines]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["build"], verdict["call"]) == (lines[1], lines[3])
    assert command.main(["check", f"{file}:TransformerBlock", "--build", "TransformerBlock("]) == 2
    assert "--build is one Python expression" in capsys.readouterr().err
    lines[1] = "__import__('os').execv('/bin/sh', ['sh'])"  # it runs in the sandbox, where nothing can be started
    assert command.main(["check", f"{file}:TransformerBlock", "--json", *lines]) == 2
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["id"] == "arguments_unknown"
    assert "PermissionError" in finding["evidence"]


def test_a_line_that_is_no_expression_is_said_once_for_a_batch(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--build", "--call"):
        assert command.main(["check", "--batch", str(workspace), "layers.py:TransformerBlock", flag, "Block("]) == 2
        captured = capsys.readouterr()
        assert f"{flag} is one Python expression" in captured.err
        assert not captured.out


def test_a_block_that_is_prenorms_own_says_so(tmp_path: Path) -> None:
    file = tmp_path / "layers.py"
    file.write_text("from prenorm import TransformerBlock as T\n\n\nclass Block(T):\n    pass\n")
    assert check(f"{file}:Block").conventions["from_prenorm"] == "Linear, RMSNorm"
    right = small.__file__
    assert "from_prenorm" not in check(f"{right}:Right").conventions


def test_there_is_a_result_where_there_is_nothing_to_judge(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subject in ("missing.py:Block", f"{workspace / 'layers.py'}:Missing"):
        assert command.main(["check", subject, "--format", "gradescope"]) == 2
        captured = capsys.readouterr()
        result = json.loads(captured.out)
        assert result["score"] == 0.0
        assert result["output"] in captured.err
        assert command.main(["check", subject, "--format", "junit"]) == 2
        assert 'errors="1"' in capsys.readouterr().out


def _of_session(number: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            found += [int(stat.parent.name)] if int(session) == number and state != "Z" else []
    return found


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_batch_that_is_ended_leaves_no_process_and_tells_what_was_judged(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, how: signal.Signals
) -> None:
    for name in ("ann.py", "bob.py"):
        (tmp_path / name).write_text("import time\ntime.sleep(600)\nclass Block:\n    pass\n")
    (tmp_path / "cy.pdf").touch()
    page = tmp_path_factory.mktemp("out") / "page.html"
    command = [sys.executable, "-m", "prenorm", "check", "--batch", str(tmp_path), "layers.py:Block", "--json"]
    command += ["--out", str(page)]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while len(_of_session(done.pid)) < 3 and time.monotonic() < until:  # one and its workers
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(done.pid, how) if how == signal.SIGINT else done.send_signal(how)
    shown, errors = done.communicate(timeout=60)
    assert "Traceback" not in errors
    assert done.returncode == 130
    problems = {one["name"]: one["problem"] for one in json.loads(shown)}
    assert problems.keys() == {"ann.py", "bob.py", "cy.pdf"}
    assert [problems["ann.py"], problems["bob.py"]] == ["not judged: the batch was stopped before"] * 2
    assert problems["cy.pdf"].startswith("it is a .pdf file")
    assert page.read_text().count("the batch was stopped before") >= 2
    while (left := _of_session(done.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def test_a_batch_of_zips_and_notebooks_is_one_page(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = tmp_path_factory.mktemp("handed in"), (workspace / "layers.py").read_text()
    with zipfile.ZipFile(folder / "ann.zip", "w") as archive:
        archive.writestr("cs336_basics/__init__.py", "import importlib.metadata as m\nm.version('cs336_basics')\n")
        archive.writestr("cs336_basics/layers.py", text)
    cell = {"cell_type": "code", "source": text + "\nraise RuntimeError('training')\n"}
    (folder / "bob.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert command.main(["check", "--batch", str(folder), "layers.py:TransformerBlock", "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert page.count("passed</td>") == 2


def test_a_batch_of_which_nothing_could_be_judged_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "ann.pdf").touch()
    assert command.main(["check", "--batch", str(tmp_path), "layers.py:TransformerBlock"]) == 2
    (tmp_path / "bob.py").write_text("import nowhere.at_all\n\nclass TransformerBlock(\n")
    assert command.main(["check", "--batch", str(tmp_path), "layers.py:TransformerBlock"]) == 1


def test_what_the_learner_prints_stays_out_of_the_json(workspace: Path) -> None:
    file = workspace / "layers.py"
    file.write_text("print('{\"passed\": true}')\n" + file.read_text() + "\nraise RuntimeError('no')\n")
    done = subprocess.run(
        [sys.executable, "-m", "prenorm", "check", f"{file}:TransformerBlock", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert [one["id"] for one in json.loads(done.stdout)["findings"]] == ["import_error"]


def test_the_time_limit_is_for_the_whole_judgement(workspace: Path) -> None:
    file = workspace / "layers.py"
    file.write_text(file.read_text() + "\nwhile True:\n    pass\n")
    verdict = check(f"{file}:TransformerBlock", seconds=1.0)
    assert (verdict.ids, verdict.exit_code) == (["timeout"], 1)
    (finding,) = verdict.findings
    assert "in the import of its file" in finding.evidence
    assert finding.place is not None
    assert finding.place.line == file.read_text().splitlines().index("while True:") + 1


@pytest.mark.parametrize(
    ("where", "id", "said"),
    [
        ("", "import_error", "while its file was imported"),
        ("init", "constructor_error", "while it was built"),
        ("forward", "forward_error", "exited with status 7"),
    ],
)
def test_a_process_that_ends_says_when_and_points_at_no_line(tmp_path: Path, where: str, id: str, said: str) -> None:
    ends = {one: "os._exit(7)" if one == where else "pass" for one in ("", "init", "forward")}
    file = tmp_path / "layers.py"
    file.write_text(f"""
import os
from torch import nn
while len(os.sep) > 1:
    pass
{ends[""]}
class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        {ends["init"]}
        self.proj = nn.Linear(d_model, d_ff)

    def forward(self, x):
        {ends["forward"]}
        return x
""")
    verdict = check(f"{file}:Block")
    assert verdict.ids == [id]
    assert said in verdict.findings[0].evidence
    assert verdict.findings[0].place is None


@pytest.mark.parametrize("after", [2, 105])
def test_time_that_many_calls_take_is_no_fault(after: int) -> None:
    """after: the calls that run; with the larger number, the numbers are explained before the time is over."""

    class Slow(LocalSubject):
        calls = 0

        def ask(self, request):
            self.calls += request["op"] == "run"
            if self.calls > after:
                raise EndedError("timeout", "the time limit ran out", waited=1.0)
            return super().ask(request)

    code = Code(root="", module=small.__name__, file=small.__file__, name="Right")
    verdict = judge(Slow(small.Right), code, seed=0, deadline=time.monotonic() + 60)
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["timeout"], (), 2)
    assert "raise --timeout" in verdict.findings[0].mend
    assert ("rope_pairing" in verdict.conventions) is (after > 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py:Block"], "there is no file missing.py"),
        (["layers.py:Missing"], "there is no 'Missing'; the file defines: "),
        (["layers.py"], "given as FILE.py:CLASS"),
        (["no.such.module:Block"], "there is no module no.such.module"),
        (["layers.py:TransformerBlock", "--timeout", "0"], "--timeout must be more than 0 and at most"),
        (["layers.py:TransformerBlock", "--json", "--format", "junit"], "are two formats"),
        (["layers.py:TransformerBlock", "--format", "csv"], "goes with --batch"),
        (["layers.py:TransformerBlock", "--out", "marks.csv"], "goes with --batch"),
        (["layers.py:TransformerBlock", "--batch", ".", "--out", "marks.pdf"], "must end in one of .csv, .html"),
        (["layers.py:TransformerBlock", "--batch", ".", "--out", "none/marks.csv"], "a folder that is there"),
    ],
)
def test_nothing_to_judge_is_exit_code_2(
    arguments: list[str],
    message: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workspace)
    assert command.main(["check", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_a_file_of_a_package_is_imported_as_part_of_it(tmp_path: Path) -> None:
    package = tmp_path / "course" / "week2"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    code = locate_here(package / "layers.py")
    assert (code.root, code.module) == (str(tmp_path), "course.week2.layers")


def locate_here(file: Path) -> Code:
    """What is imported for a file that is made here."""
    file.write_text("")
    return locate(f"{file}:Block")
