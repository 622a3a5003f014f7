import os
import subprocess
import sys
import types
from typing import Any

import pytest

from prenorm import __version__
from prenorm.cli import main as cli
from prenorm.errors import CheckpointError


def prenorm(*argv, **options):
    return subprocess.run([sys.executable, "-m", "prenorm", *argv], capture_output=True, text=True, **options)


@pytest.fixture
def command(monkeypatch):
    """A command called `try` that does what a test puts into its `run`."""
    module: Any = types.ModuleType("prenorm.cli.try_it")
    module.parse = lambda argv: argv
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "try", (module.__name__, "Tries."))
    return module


def raises(error):
    def run(flags):
        raise error

    return run


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["data", "--help"], ["generate", "--help"], ["cost", "--help"], ["challenge", "submit", "--help"]],
)
def test_help_imports_little(argv):
    """What takes long on any machine: torch alone is more than a thousand modules, of which help needs none."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    result = prenorm(*argv, env=environment)
    assert result.returncode == 0
    assert result.stdout.startswith("usage: prenorm")
    imported = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    assert {"prenorm", "prenorm.cli"} <= imported
    assert not {"torch", "numpy", "transformers", "tokenizers"} & imported
    assert len(imported) < 400


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["data", "--help"], ["generate", "--help"], ["challenge", "new", "--help"]]
)
def test_help_does_not_wait_for_torch(argv):
    program = f"import sys, prenorm.cli.main as m; m.main({argv}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == list(cli.COMMANDS)
    assert {"train", "generate", "inspect", "export", "cost", "check", "challenge"} <= {*listed}


def test_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"prenorm {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], f"a command is one of {', '.join(cli.COMMANDS)}, but none is given"),
        (["trian"], f"a command is one of {', '.join(cli.COMMANDS)}, but 'trian' is none"),
    ],
)
def test_a_command_line_without_a_command_is_bad_usage(argv, message, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_bad_flags_are_bad_usage(capsys):
    assert cli.main(["generate", "run", "--no-such-flag"]) == 2
    captured = capsys.readouterr()
    assert "--no-such-flag" in captured.err
    assert captured.out == ""


def test_the_exit_code_is_the_commands(command):
    command.run = lambda flags: len(flags)
    assert cli.main(["try"]) == 0
    assert cli.main(["try", "one fault"]) == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CheckpointError("the rule, the value; the way out."), "prenorm try: the rule, the value; the way out.\n"),
        (PermissionError(13, "Permission denied", "a.txt"), "prenorm try: [Errno 13] Permission denied: 'a.txt'\n"),
    ],
)
def test_an_error_on_purpose_is_one_line_and_exit_code_2(error, line, command, capsys):
    command.run = raises(error)
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", line)


def test_our_own_mistakes_keep_their_traceback(command):
    command.run = raises(KeyError("x"))
    with pytest.raises(KeyError):
        cli.main(["try"])


def test_an_interrupt_is_quiet(command, capsys):
    command.run = raises(KeyboardInterrupt())
    assert cli.main(["try"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_seen_enough_is_no_error():
    program = (
        "import sys, types, prenorm.cli.main as m\n"
        "module = types.ModuleType('much')\n"
        "module.parse = list\n"
        "module.run = lambda flags: print('line\\n' * 100_000) or 0\n"
        "sys.modules['much'] = module\n"
        "m.COMMANDS['much'] = ('much', 'Much.')\n"
        "sys.exit(m.main(['much']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_terminal_without_a_character_gets_the_others(command):
    program = "import prenorm.cli.main as m; m._run = lambda *_: print('a世b') or 0; raise SystemExit(m.main(['x']))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"a?b\n", b"")


@pytest.mark.parametrize(
    ("argv", "before", "after"), [("generate", None, "1"), ("generate", "0", "0"), ("train", None, None)]
)
def test_generation_has_large_pages_unless_somebody_says_otherwise(argv, before, after, monkeypatch, capsys):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", before or "")  # noted, so that it is put back
    if before is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    cli.main([argv, "--help"])
    assert os.environ.get("THP_MEM_ALLOC_ENABLE") == after
