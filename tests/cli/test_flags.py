import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prenorm.cli import challenge, check, generate, train

TEXTS = [
    "-x",
    "-",
    "--",
    "---",
    "-> int:",
    "--not-a-flag",
    "-1",
    "-e\n--",
    "",
    "\n",
    "--a=b",
    "=",
    "@file",
    "- - -",
    "-é",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_a_prompt_and_a_stop_string_may_be_any_text(text, form):
    def given(flag):
        return [flag, text] if form == "two words" else [f"{flag}={text}"]

    for argv in (["run", *given("--prompt"), *given("--stop")], [*given("--stop"), *given("--prompt"), "run"]):
        flags = generate.parse([*argv, "--max-new-tokens", "3", *given("--prompt")])
        assert (flags.run, flags.prompt, flags.stop) == (Path("run"), (text, text), (text,))
        assert flags.max_new_tokens == 3


@pytest.mark.parametrize("text", ["--json", "--help", "-h", "--seed=3", "--max-new-tokens", "--max_new_tokens"])
def test_a_text_that_is_a_flag_is_given_in_one_word(text, capsys):
    assert generate.parse(["run", f"--prompt={text}"]).prompt == (text,)
    with pytest.raises(SystemExit):
        generate.parse(["run", "--prompt", text])
    shown = capsys.readouterr()
    assert "Missing value for argument '--prompt'" in shown.err or "usage: prenorm generate" in shown.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "--promt", "-x"], "--promt"),
        (["run", "--prompt", "a", "-x"], "-x"),
        (["run", "--prompt"], "Missing value for argument '--prompt'"),
        (["run", "--prompt", "--max-new-tokens", "3"], "Missing value for argument '--prompt'"),
        (["run", "--temperature", "--prompt", "x"], "Missing value for argument '--temperature'"),
    ],
)
def test_a_flag_that_is_wrong_is_named(argv, message, capsys):
    with pytest.raises(SystemExit) as raised:
        generate.parse(argv)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-x", "--", "-a.toml", "--x y"])
def test_every_flag_of_a_text_or_a_path_takes_one_that_begins_with_a_dash(text):
    for name in ("out", "tokenizer", "device"):
        assert train.parse([f"--{name}", text, "--steps", "3"]).given == {name: text, "steps": 3}
    assert train.parse(["--config", text]).config == Path(text)
    assert check.parse(["--batch", text, "Block"]).batch == Path(text)
    submitted: Any = challenge.parse(["submit", "--answers", text])
    assert submitted.answers == Path(text)


def test_what_follows_two_dashes_is_no_flag():
    flags = generate.parse(["--prompt", "-x", "--", "-run"])
    assert (flags.run, flags.prompt) == (Path("-run"), ("-x",))
    assert check.parse(["--", "-x.py:Block"]).subject == "-x.py:Block"


def test_other_flags_are_as_they_were():
    flags = generate.parse(["run", "--seed", "-3", "--max_new_tokens", "4", "--json"])
    assert (flags.seed, flags.max_new_tokens, flags.json) == (-3, 4, True)
    given = train.parse(["--data", "a", "b", "--no-compile", "--steps", "2"]).given
    assert given == {"data": ("a", "b"), "compile": False, "steps": 2}


def test_the_command_itself_takes_such_a_prompt(run_folder):
    argv = ["generate", str(run_folder), "--json", "--prompt", "-x", "--prompt", "--", "--max-new-tokens", "1"]
    result = subprocess.run([sys.executable, "-m", "prenorm", *argv], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert [one["prompt"] for one in json.loads(result.stdout)] == ["-x", "--"]
