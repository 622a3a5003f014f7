import json
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from prenorm import ModelConfig, TransformerLM
from prenorm.cli.main import main
from prenorm.cli.train import TrainFlags, config_of, field_docs, parse
from prenorm.training.config import RUN_FIELDS, TrainConfig, config_to_toml, read_toml

TINY = ("--preset", "tiny", "--d-model", "16", "--vocab-size", "300", "--context", "16", "--batch-size", "2")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"This is text {number}. " * 20)
    return folder


def error_line(argv, capsys):
    """The one line that a refused command line gets on standard error."""
    assert main(["train", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("prenorm train: ")
    return line


def test_only_the_settings_that_are_named_are_given():
    assert parse([]) == TrainFlags(given={})
    flags = parse(["--data", "a", "b c", "--steps", "3", "--no-qk-norm", "--adam-betas", "0.8", "0.9", "--resume"])
    given = {"data": ("a", "b c"), "steps": 3, "qk_norm": False, "adam_betas": (0.8, 0.9)}
    assert flags == TrainFlags(given=given, resume=True)


def test_every_setting_of_a_run_has_a_flag_and_help():
    text = subprocess.run(
        [sys.executable, "-c", "import sys; from prenorm.cli.train import parse\n"
         "try: parse(['--help'])\nfinally: assert 'torch' not in sys.modules"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (text.returncode, text.stderr) == (0, "")
    for name in [
        *(RUN_FIELDS.keys() - {"start_from"}),
        "from",
        "d_model",
        "num_kv_heads",
        "dropout",
        "resume",
        "config",
        "json",
    ]:
        assert f"--{name.replace('_', '-')}" in text.stdout
    assert field_docs(TrainConfig).keys() == RUN_FIELDS.keys() | {"model"}


def test_flags_go_before_a_file_and_a_file_before_the_preset(tmp_path):
    (tmp_path / "my.toml").write_text('preset = "tiny"\nsteps = 7\nseed = 1\n[model]\nd_model = 32\n')
    config = config_of(parse(["--config", str(tmp_path / "my.toml"), "--seed", "2"]))
    assert (config.preset, config.steps, config.seed, config.model.d_model) == ("tiny", 7, 2, 32)
    assert config.context == TrainConfig.from_fields({"preset": "tiny"}).context


def test_a_run_that_is_resumed_keeps_what_is_not_named(tmp_path):
    saved = TrainConfig.from_fields({"preset": "tiny", "steps": 7, "out": "elsewhere"})
    (tmp_path / "config.toml").write_text(config_to_toml(saved))
    config = config_of(parse(["--out", str(tmp_path), "--resume", "--checkpoint-every", "3"]))
    assert (config.preset, config.steps, config.checkpoint_every, config.out) == ("tiny", 7, 3, str(tmp_path))
    assert config_of(parse(["--out", str(tmp_path)])).preset == "demo"


@pytest.mark.parametrize(
    ("before", "processes", "flags", "after"),
    [
        ({"dp": 2, "tp": 2}, 4, "", (2, 1, 2, 1)),
        ({"dp": 2, "tp": 2}, 8, "", (0, 1, 1, 1)),
        ({"dp": 2, "tp": 2}, 1, "", (0, 1, 1, 1)),
        ({"tp": 2}, 8, "", (0, 1, 2, 1)),
        ({"tp": 2}, 1, "", (0, 1, 1, 1)),
        ({"dp": 2, "pp": 2}, 8, "--fsdp 4 --tp 2", (0, 4, 2, 1)),
        ({"dp": 2, "pp": 2}, 4, "--tp 2", (0, 1, 2, 1)),
        ({}, 4, "", (0, 1, 1, 1)),
    ],
)
def test_a_run_that_is_resumed_keeps_its_layout_where_it_fits_and_none_is_given(
    tmp_path, monkeypatch, before, processes, flags, after
):
    (tmp_path / "config.toml").write_text("".join(f"{name} = {size}\n" for name, size in before.items()))
    for name, value in {"WORLD_SIZE": processes, "RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    config = config_of(parse(["--out", str(tmp_path), "--resume", *flags.split()]))
    assert (config.dp, config.fsdp, config.tp, config.pp) == after


def test_a_run_that_is_resumed_keeps_the_folder_that_it_came_from_also_when_that_is_gone(tmp_path):
    sizes = {"vocab_size": 300, "d_model": 16, "num_layers": 1, "num_heads": 2}
    saved = TrainConfig.from_fields({"preset": "finetune", "start_from": "gone", "out": "elsewhere", **sizes})
    (tmp_path / "config.toml").write_text(config_to_toml(saved))
    config = config_of(parse(["--out", str(tmp_path), "--resume"]))
    assert (config.start_from, config.lr, config.model) == ("gone", 2e-5, saved.model)


def test_a_learning_rate_without_a_say_is_refused(capsys):
    assert "Muon has muon_lr, embedding_lr" in error_line(["--lr", "0.1"], capsys)
    line = error_line(["--optimizer", "adamw", "--muon-lr", "0.1", "--head-lr", "0.1"], capsys)
    assert "muon_lr, head_lr" in line
    assert "whose learning rate is lr; leave it out" in line
    assert config_of(parse(["--optimizer", "adamw", "--lr", "0.1"])).lr == 0.1


def test_a_run_goes_on_from_a_folder_with_its_sizes_and_is_repeated_from_its_config(texts, tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    data = ["--data", str(texts), "--steps", "2"]
    assert main(["train", *TINY, *data, "--out", str(first)]) == 0
    assert main(["train", "--from", str(first), *data, "--batch-size", "2", "--lr", "0.001", "--out", str(second)]) == 0
    config = read_toml(second / "config.toml")
    assert (config["preset"], config["start_from"], config["d_model"]) == ("finetune", str(first), 16)
    assert main(["train", "--config", str(second / "config.toml"), "--out", str(third)]) == 0
    assert (second / "model.safetensors").read_bytes() == (third / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert "d_model is 16 there and 32 here" in error_line(["--from", first, "--d-model", "32"], capsys)
    assert "no such folder" in error_line(["--from", tmp_path / "nowhere"], capsys)
    assert "--from FOLDER names one" in error_line(["--preset", "finetune"], capsys)


@pytest.mark.parametrize("name", [pytest.param("SIGTERM", marks=pytest.mark.long), "SIGUSR1"])
def test_a_signal_ends_a_run_with_a_checkpoint_and_its_exit_code(texts, tmp_path, name):
    out, number = tmp_path / "run", getattr(signal, name)
    argv = [
        *TINY,
        "--data",
        str(texts),
        "--out",
        str(out),
        "--steps",
        "100000",
        "--log-seconds",
        "0",
        "--eval-every",
        "0",
    ]
    command = [sys.executable, "-m", "prenorm", "train", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stdout if line.startswith("step "))
        for _ in range(2):  # launchers and schedulers may send it twice
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "with a checkpoint" in errors
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) >= int(line.split()[1])
    steps = (out / "metrics.jsonl").read_text().splitlines()
    assert json.loads(steps[-1])["step"] == int(checkpoint.name.removeprefix("step-"))


def test_a_run_ends_with_a_table_a_sample_and_the_command_that_goes_on(texts, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *TINY, "--data", str(texts), "--out", str(out), "--steps", "3"]) == 0
    text = capsys.readouterr().out
    for part in (
        "Read 30 documents",
        "Training",
        "step 3 of 3: loss",
        "this model",
        "gzip -9",
        "xz -9",
        "A sample, after",
    ):
        assert part in text
    command = text.splitlines()[-2].split()
    assert command[:3] == ["prenorm", "generate", str(out)]
    assert main([*command[1:3], "--prompt", "This", "--max-new-tokens", "3"]) == 0


def test_json_is_the_result_and_nothing_else(texts, tmp_path):
    argv = [*TINY, "--data", str(texts), "--out", str(tmp_path / "run"), "--steps", "2", "--json"]
    done = subprocess.run([sys.executable, "-m", "prenorm", "train", *argv], capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "step 2 of 2" in done.stderr
    assert "Warning" not in done.stderr


def test_a_folder_that_holds_a_run_is_refused_and_both_ways_out_are_named(texts, tmp_path, capsys):
    argv = [*TINY, "--data", texts, "--out", tmp_path / "run", "--steps", "1"]
    assert main(["train", *map(str, argv)]) == 0
    capsys.readouterr()
    line = error_line(argv, capsys)
    assert "--resume" in line
    assert "--out" in line
    assert "is finished" not in line
    assert "seed is 0 there and 5 here" in error_line([*argv, "--resume", "--seed", "5"], capsys)
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\x00\x01", "it is binary"),
        (b"\xff\xfe\xfa", "it is not UTF-8"),
        (b"short", "the training text must have at least 16 tokens, but has"),
        (None, "there is no file or folder at"),
    ],
)
def test_bad_text_is_one_line_and_the_command_can_be_repeated(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    argv = [*TINY, "--data", tmp_path / "text.txt", "--out", tmp_path / "run"]
    for _ in range(2):
        assert message in error_line(argv, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "missing.toml"], "the config file missing.toml cannot be read"),
        (["--steps", "0"], "steps must be an integer of at least 1"),
        (["--d-model", "30", "--num-heads", "4"], "num_heads must divide d_model"),
        (["--device", "abacus", "--data", __file__], "device must be one of this machine"),
        (["--tokenizer", "missing.json", "--data", __file__], "the tokenizer missing.json cannot be read"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(["--preset", "tiny", *argv], capsys)
    assert list(tmp_path.rglob("config.toml")) == []


def test_a_folder_that_is_no_run_is_refused(texts, capsys):
    for resume in ([], ["--resume"]):
        assert "holds other things" in error_line([*TINY, "--data", texts, "--out", texts, *resume], capsys)


def test_flags_that_are_none_are_explained(capsys):
    assert main(["train", "--stepz", "3"]) == 2
    assert "--stepz" in capsys.readouterr().err


def test_a_published_model_has_the_sizes_and_flags_have_the_last_word(tmp_path):
    (tmp_path / "my.toml").write_text("seed = 1\n[model]\nd_model = 32\ndropout = 0.1\n")
    argv = ["--model", "llama-3.1-405b", "--config", str(tmp_path / "my.toml"), "--num-layers", "2"]
    config = config_of(parse([*argv, "--preset", "gpt2-small"]))
    expected = {**ModelConfig.preset("llama-3.1-405b").to_dict(), "num_layers": 2, "dropout": 0.1}
    assert config.model.to_dict() == expected
    assert (config.seed, config.context) == (1, 1024)
    assert TrainConfig.from_fields(config.to_fields()) == config


@pytest.mark.parametrize(
    ("name", "num_kv_heads", "model_type"),
    [("qwen3-0.6b", "1", "qwen3"), ("gpt2", "2", "gpt2"), ("pythia-160m", "2", "gpt_neox")],
)
def test_a_run_with_the_sizes_of_a_published_model_trains_and_shows_its_utilisation(
    name, num_kv_heads, model_type, texts, tmp_path, capsys
):
    small = ["--d-model", "32", "--num-heads", "2", "--num-kv-heads", num_kv_heads, "--head-dim", "16", "--d-ff", "16"]
    argv = ["--model", name, *small, "--num-layers", "1", "--vocab-size", "300", "--preset", "tiny"]
    argv += [
        "--data",
        str(texts),
        "--out",
        str(tmp_path / "run"),
        "--context",
        "16",
        "--batch-size",
        "2",
        "--steps",
        "1",
    ]
    assert main(["train", *argv]) == 0
    text = capsys.readouterr().out
    assert "a large product runs at" in text
    assert "MFU" in text
    assert "6N + attention" in text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == model_type
    ours, theirs = (kind.from_pretrained(tmp_path / "run") for kind in (TransformerLM, AutoModelForCausalLM))
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    (record, *_) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {"mfu_causal", "mfu_6n_attention"} <= json.loads(record).keys()


def test_a_model_that_cannot_be_trained_is_refused_by_name(capsys):
    assert "has only a cost sheet" in error_line(["--model", "gpt3-175b"], capsys)
    assert "a model preset must be one of" in error_line(["--model", "llama-9"], capsys)
