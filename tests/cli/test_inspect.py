import json
import shutil
from typing import Any

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


def test_fields_that_are_not_at_their_defaults_are_shown_whatever_they_are(tmp_path, capsys):
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False}
    cases: list[tuple[dict[str, Any], list[str], str]] = [
        ({"model_type": "nemotron", "num_key_value_heads": 1}, ["gated=False", "one_plus_norms=True"], "residual="),
        (gpt2, ["learned_positions=True", "gated=False"], "rope_theta"),
        ({"model_type": "granite", "attention_multiplier": 1.0}, ["attention_scale=1.0"], "embedding_scale="),
        ({"model_type": "llama", "rope_scaling": scaling}, ["kind=yarn, factor=4.0", "truncate=False"], "beta_fast="),
    ]
    for fields, shown, not_shown in cases:
        written = {"vocab_size": 9, **fields} if fields is gpt2 else sizes | fields
        (tmp_path / "config.json").write_text(json.dumps(written))
        assert main(["inspect", str(tmp_path)]) == 1  # it has no weights
        out = " ".join(capsys.readouterr().out.split())
        assert all(part in out for part in shown)
        assert not_shown not in out


def test_what_is_no_folder_is_bad_usage(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "must be a folder" in capsys.readouterr().err
