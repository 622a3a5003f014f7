import json
import shutil

from prenorm.checkpoint.inspection import inspect_folder
from prenorm.cli.main import main


def test_a_run_is_shown(run_folder, capsys):
    assert main(["inspect", str(run_folder)]) == 0
    out = capsys.readouterr().out
    for part in ("LlamaForCausalLM", "Sizes", "model.layers.*.mlp.up_proj", "bfloat16", "tokenizer.json", "opens it"):
        assert part in out


def test_json_is_one_document(run_folder, capsys):
    assert main(["inspect", "--json", str(run_folder)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(inspect_folder(run_folder)))


def test_a_folder_that_would_be_refused_is_shown_with_the_reason(run_folder, tmp_path, capsys):
    folder = shutil.copytree(run_folder, tmp_path / "broken")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"[bold]evil\x1b[31m": 1, "num_key_value_heads": 3}))
    assert main(["inspect", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "Refused" in out
    assert '"[bold]evil\\u001b[31m" is not known' in out
    assert "model.layers.*.mlp.up_proj" in out


def test_a_run_that_has_not_ended_says_so(tmp_path, capsys):
    (tmp_path / "config.toml").write_text(
        "steps = 1\n[model]\nvocab_size = 300\nd_model = 32\nnum_layers = 2\nnum_heads = 2\n"
    )
    assert main(["inspect", str(tmp_path), "--json"]) == 1
    sheet = json.loads(capsys.readouterr().out)
    assert "has not ended: prenorm train --out" in sheet["refused"][0]
    assert sheet["config"]["d_model"] == 32


def test_what_is_no_folder_is_bad_usage(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "must be a folder" in capsys.readouterr().err
