import io
import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer

from prenorm import TransformerLM
from prenorm.cli.main import main

END = "<|endoftext|>"


def error_line(argv, capsys):
    """The one line that a refused command line gets."""
    assert main(["generate", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("prenorm generate: ")
    return line


def test_a_prompt_is_printed_and_continued(run_folder, capsys):
    argv = ["generate", str(run_folder), "--prompt", "def ", "--max-new-tokens", "20", "--seed", "1"]
    assert main(argv) == 0
    first = capsys.readouterr()
    assert first.out.startswith("def ")
    assert len(first.out) > len("def \n")
    assert first.err == ""
    assert main(argv) == 0
    assert capsys.readouterr().out == first.out


def test_json_is_one_document_and_nothing_else(run_folder):
    argv = ["generate", str(run_folder), "--json", "--prompt", "def ", "--prompt", "世", "--max-new-tokens", "7"]
    result = subprocess.run([sys.executable, "-m", "prenorm", *argv], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    completions = json.loads(result.stdout)
    assert [one["prompt"] for one in completions] == ["def ", "世"]
    for one in completions:
        assert one.keys() == {"prompt", "text", "token_ids", "finish_reason"}
        assert one["finish_reason"] == ("eos" if one["token_ids"][-1] == 0 else "length")
        assert one["finish_reason"] == "eos" or len(one["token_ids"]) == 7


def test_the_flags_reach_the_model(run_folder, capsys):
    model, tokenizer = (
        TransformerLM.from_pretrained(run_folder),
        Tokenizer.from_file(str(run_folder / "tokenizer.json")),
    )
    argv = ["--json", "--prompt", "ab", "--max-new-tokens", "9", "--temperature", "0.9", "--top-k", "50"]
    argv = ["generate", str(run_folder), *argv, "--top-p", "0.8", "--seed", "3"]
    prompts, options = [tokenizer.encode("ab").ids], {"temperature": 0.9, "top_k": 50, "top_p": 0.8, "seed": 3}
    replies = []
    for name, value in (("min_p", 0.97), ("repetition_penalty", 0.01), ("seed", 4)):
        assert main([*argv, f"--{name.replace('_', '-')}", str(value), "--logprobs"]) == 0
        (completion,) = json.loads(capsys.readouterr().out)
        ids, logprobs = model.generate(prompts, max_new_tokens=9, logprobs=True, **{**options, name: value})
        assert ([completion["token_ids"]], [completion["logprobs"]]) == (ids, logprobs)
        replies.append(ids)
    plain: Any = model.generate(prompts, max_new_tokens=9, **options)
    assert plain not in replies
    assert main(argv) == 0
    (completion,) = json.loads(capsys.readouterr().out)
    assert [completion["token_ids"]] == plain


def test_logprobs_need_json(run_folder, capsys):
    line = error_line([run_folder, "--prompt", "a", "--logprobs"], capsys)
    assert "--logprobs needs --json, because plain text cannot include them" in line


def test_text_ends_before_a_stop_string(run_folder, capsys):
    argv = ["generate", str(run_folder), "--json", "--prompt", "ab", "--seed", "3", "--temperature", "0.5"]
    main(argv)
    (whole,) = json.loads(capsys.readouterr().out)
    stop = whole["text"][4]
    assert main([*argv, "--stop", stop, "--stop", "never"]) == 0
    (cut,) = json.loads(capsys.readouterr().out)
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole["text"].split(stop)[0]


def test_several_prompts_each_have_a_header(run_folder, capsys):
    argv = ["--prompt", "def ", "--prompt", "class ", "--max-new-tokens", "1", "--temperature", "0"]
    assert main(["generate", str(run_folder), *argv]) == 0
    out = capsys.readouterr().out
    assert "--- prompt 1 of 2 ---\ndef " in out
    assert "--- prompt 2 of 2 ---\nclass " in out


def test_standard_input_is_the_prompt_as_it_stands(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x = 1\n"))
    assert main(["generate", str(run_folder), "--json", "--max-new-tokens", "1"]) == 0
    (completion,) = json.loads(capsys.readouterr().out)
    assert completion["prompt"] == "x = 1\n"


def test_an_empty_prompt_starts_a_new_text(run_folder, capsys):
    assert main(["generate", str(run_folder), "--json", "--prompt", "", "--max-new-tokens", "3"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["token_ids"]


def test_without_a_prompt_there_is_a_way_out(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert 'a prompt is needed, but there is none; give --prompt "def "' in error_line([run_folder], capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "a prompt is needed, but standard input is empty" in error_line([run_folder], capsys)


def test_standard_input_that_is_no_text_is_refused(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff\xfe"), encoding="utf-8"))
    assert "must be UTF-8 text" in error_line([run_folder], capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature must be at least 0"),
        (["--temperature", "nan"], "temperature must be a finite number"),
        (["--top-k", "0"], "top_k must be an integer of at least 1"),
        (["--top-p", "1.1"], "top_p is a probability"),
        (["--min-p", "0"], "min_p must be greater than 0"),
        (["--repetition-penalty", "-1"], "repetition_penalty must be greater than 0"),
        (["--seed", "-1"], "seed must be an integer from 0"),
        (["--max-new-tokens", "-1"], "max_new_tokens must be an integer of at least 0"),
        (["--max-new-tokens", "100"], "max_new_tokens=39 would do"),
        (["--stop", ""], "a stop string must be text of at least one character"),
    ],
)
def test_flags_that_nothing_can_follow_are_refused(flags, message, run_folder, capsys):
    assert message in error_line([run_folder, "--prompt", "a", *flags], capsys)


def test_a_folder_that_is_none_is_refused(tmp_path, run_folder, capsys):
    prompt = ["--prompt", "a"]
    assert "there is no folder" in error_line([tmp_path / "none", *prompt], capsys)
    assert "there is no folder" in error_line([run_folder / "config.json", *prompt], capsys)


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    assert "holds no trained model: it has no config.json" in error_line([tmp_path, "--prompt", "a"], capsys)


def test_a_training_that_has_not_ended_is_refused_with_the_command_that_goes_on(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "config.json").write_text("{}")
    line = error_line([tmp_path, "--prompt", "a"], capsys)
    assert f"{tmp_path / 'checkpoints'}; prenorm train --out {tmp_path} --resume goes on with it" in line


def test_a_model_without_a_tokenizer_is_refused(tmp_path, run_folder, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    assert "has no tokenizer.json" in error_line([tmp_path, "--prompt", "a"], capsys)


def test_damaged_weights_are_refused(tmp_path, run_folder, capsys):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes()[:1000])
    assert "model.safetensors" in error_line([tmp_path, "--prompt", "a"], capsys)


def test_a_model_can_be_quantised_first(run_folder, tmp_path, capsys):
    argv = ["--prompt", "def ", "--max-new-tokens", "20", "--temperature", "0"]
    texts = {}
    for kind in ("int8", "int4"):
        assert main(["generate", str(run_folder), *argv, "--quantize", kind]) == 0
        texts[kind] = capsys.readouterr().out
        TransformerLM.from_pretrained(run_folder).quantize(kind).save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_bytes((run_folder / "tokenizer.json").read_bytes())
        assert main(["generate", str(tmp_path), *argv]) == 0
        assert capsys.readouterr().out == texts[kind]
    assert texts["int8"] != texts["int4"]
    assert "already quantised, to int4" in error_line([tmp_path, *argv, "--quantize", "int8"], capsys)


def greedy(folder, capsys, *flags):
    assert main(["generate", str(folder), "--json", "--prompt", "ab", *flags]) == 0
    return json.loads(capsys.readouterr().out)[0]["token_ids"]


@pytest.fixture
def with_settings(run_folder, tmp_path):
    """A copy of the run, with a generation_config.json of these fields."""

    def folder(**fields):
        copied = shutil.copytree(run_folder, tmp_path / "copy", dirs_exist_ok=True)
        (copied / "generation_config.json").write_text(json.dumps(fields))
        return copied

    return folder


def test_the_folders_generation_config_is_what_flags_are_silent_about(run_folder, with_settings, capsys):
    seed = ("--seed", "5")
    wanted = greedy(run_folder, capsys, *seed, "--temperature", "2.0", "--top-k", "7", "--max-new-tokens", "9")
    settings = {"do_sample": True, "temperature": 2.0, "top_k": 7, "max_new_tokens": 9, "top_p": 1.0}
    assert greedy(with_settings(**settings), capsys, *seed) == wanted
    fewer = greedy(run_folder, capsys, *seed, "--temperature", "2.0", "--top-k", "2", "--max-new-tokens", "9")
    assert greedy(with_settings(**settings), capsys, *seed, "--top-k", "2") == fewer != wanted
    plain = greedy(run_folder, capsys, *seed)
    assert greedy(with_settings(**settings), capsys, *seed, "--ignore-generation-config") == plain != wanted


def test_without_do_sample_the_most_probable_token_is_taken_unless_a_flag_asks_to_draw(
    run_folder, with_settings, capsys
):
    length, folder = ("--max-new-tokens", "9"), with_settings(temperature=0.6, max_length=9)
    assert greedy(folder, capsys, *length) == greedy(run_folder, capsys, *length, "--temperature", "0")
    assert len(greedy(folder, capsys)) == 9 - 3  # "ab" is three tokens with the end of text
    drawn = (*length, "--seed", "5", "--top-p", "0.9")
    assert greedy(folder, capsys, *drawn) == greedy(run_folder, capsys, *drawn)


def test_settings_that_cannot_be_given_are_refused_by_name(with_settings, capsys):
    folder = with_settings(num_beams=4, no_repeat_ngram_size=3, top_k=5)
    line = error_line([folder, "--prompt", "a"], capsys)
    assert "num_beams is 4, no_repeat_ngram_size is 3, which prenorm does not have; --ignore-generation-config" in line
    assert main(["generate", str(folder), "--prompt", "a", "--ignore-generation-config"]) == 0
