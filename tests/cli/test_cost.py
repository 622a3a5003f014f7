import json
import re
import subprocess
import sys

import pytest
import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.checkpoint.layouts import config_from_hugging_face
from prenorm.cli.main import main
from prenorm.costs.devices import DEVICES
from prenorm.published import PUBLISHED
from prenorm.training.config import TrainConfig, config_to_toml


def sheet(capsys, *argv):
    assert main(["cost", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error_line(capsys, *argv):
    assert main(["cost", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_has_a_sheet_and_its_published_count(name, capsys):
    found = sheet(capsys, name)
    assert found["model"] == name
    assert found["source"] == PUBLISHED[name].source
    assert found["parameters"]["total"] == PUBLISHED[name].parameters


def test_names_do_without_torch_and_so_does_help():
    code = (
        "import sys; from prenorm.cli.main import main\n"
        "assert main(['cost', 'llama-3-8b', '--json', '--device', 'H100-SXM', '--fits', '80GB']) == 0\n"
        "assert main(['cost', 'llama-3-8b', '--fits', '80GB']) == 0\n"
        "assert main(['cost', '--help']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_models_folder_and_a_runs_folder_have_the_sheet_of_their_model(tmp_path, capsys):
    config = ModelConfig(vocab_size=300, d_model=16, num_layers=2, num_heads=2, max_seq_len=64, qk_norm=True)
    model = TransformerLM(config)
    model.save_pretrained(tmp_path / "model")
    found = sheet(capsys, tmp_path / "model")
    assert found["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["settings"]["context"] == 64
    run = tmp_path / "run"
    run.mkdir()
    fields = {"preset": "tiny", "d_model": 16, "vocab_size": 300}
    (run / "config.toml").write_text(config_to_toml(TrainConfig.from_fields(fields)))
    assert sheet(capsys, run)["parameters"]["embedding"] == 300 * 16


FAMILIES = {  # as config.json has them
    "gemma2": {
        **{"vocab_size": 99, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "sliding_window": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64},
    },
    "gpt2": {"vocab_size": 99, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_folder_has_a_whole_sheet(name, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **FAMILIES[name]}))
    found = sheet(capsys, tmp_path, "--fits", "1GB")
    config, _ = config_from_hugging_face({"model_type": name, **FAMILIES[name]})
    with torch.device("meta"):
        model = TransformerLM(config)
    assert found["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["not_counted"] == []
    assert found["saved_bytes"]["pytorch"]["plain"]["total"] > found["saved_bytes"]["pytorch"]["checkpointed"]["total"]
    assert found["fits"]["training"]["adamw"]["plain"]["batch"] > 0
    cached = {"gpt2": 3 * 64 * 32, "gemma2": (2 * 16 + 2 * 64) * 16}[name]
    assert found["kv_cache_bytes"] == 2 * 2 * cached
    assert main(["cost", str(tmp_path), "--fits", "1GB"]) == 0
    assert "peak of a step with adamw" in capsys.readouterr().out


def test_a_layout_of_parts_that_are_counted_on_one_device_alone_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", **FAMILIES["gemma2"]}))
    assert main(["cost", str(tmp_path), "--gpus", "8", "--device", "h100-sxm"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "what this model's family has: residual, one_plus_norms, attention_softcap, logit_softcap" in said


def test_a_run_that_has_not_ended_has_the_vocabulary_of_its_tokenizer(tmp_path, capsys):
    from prenorm.training.tokenizer import tokenizer_files, train_tokenizer, vocabulary_size

    tokenizer = train_tokenizer(["a few words"], 2000)
    for name, content in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    fields = {"preset": "tiny", "d_model": 16, "vocab_size": 2000}
    (tmp_path / "config.toml").write_text(config_to_toml(TrainConfig.from_fields(fields)))
    size = vocabulary_size(tokenizer)
    assert size < 2000
    assert sheet(capsys, tmp_path)["parameters"]["embedding"] == size * 16


def test_tables_have_every_group_of_figures(capsys):
    argv = ["cost", "mistral-7b", "--flops", "1e15", "--watts", "700", "--fits", "24GB", "--batch", "3"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    for part in ("7,241,732,096", "weighted values", "6N + attention", "keys and values", "amd cpu", "muon"):
        assert part in text
    for part in ("1,000 TFLOP/s, 700 W (the flags)", "3 decoded tokens, joules", "not known", "days", "kWh"):
        assert part in text
    for part in ("Jiang et al. 2023", "fits into 24.00 GB", "context at batch 3", "training, adamw, checkpointed"):
        assert part in text


def test_the_published_rate_of_a_device_is_that_of_bfloat16_and_flags_have_the_last_word(capsys):
    argv = ["gpt2", "--device", "H100-SXM"]
    device = DEVICES["h100-sxm"]._asdict()
    assert sheet(capsys, *argv)["hardware"].items() >= device.items()
    found = sheet(capsys, *argv, "--dtype", "float32", "--watts", "5")["hardware"]
    assert (found["flops_per_second"], found["bytes_per_second"], found["watts"]) == (None, 3.35e12, 5)
    assert found["training_plain"]["seconds"] is None
    found = sheet(capsys, *argv, "--dtype", "float32", "--flops", "67e12")["hardware"]
    assert found["flops_per_second"] == 67e12
    assert found["source"] == f"{device['source']}, and the flags"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["llama3-8b"], r"MODEL must be a folder with a model, or one of gpt2, .* Did you mean llama-3-8b\?"),
        (["no/such/folder"], r"not 'no/such/folder'\.$"),
        (["gpt2", "--device", "h100"], r"device must be one of a100-40gb, .* Did you mean h100-sxm\? --flops"),
        (["gpt2", "--device", "abacus"], "not 'abacus'. --flops, --bandwidth and --watts describe any other"),
        (["gpt2", "--flops", "0"], "flops must be at least 1"),
        (["gpt2", "--watts", "nan"], "watts must be a finite number"),
        (["gpt2", "--fits", "24XB"], "a memory size must be a number of bytes"),
        (["gpt2", "--context", "2000"], "2000 is greater than 1024; --context 1024 would do"),
        (["gpt2", "--context", "-5"], "context must be an integer of at least 1, not -5"),
        (["gpt2", "--batch", "0"], "batch must be an integer of at least 1"),
        (["gpt2", "--tokens", "0"], "tokens must be an integer of at least 1"),
        (["gpt2", "--flops", "1e12", "--utilisation", "45"], "utilisation must be at most 1"),
    ],
)
def test_bad_flags_are_one_line(argv, message, capsys):
    assert re.search(message, error_line(capsys, *argv))


def test_a_folder_without_a_model_and_one_of_whole_numbers_are_refused(tmp_path, capsys):
    assert "holds no model" in error_line(capsys, tmp_path)
    (tmp_path / "notes").write_text("")
    assert "is a file; give the folder that it lies in" in error_line(capsys, tmp_path / "notes")
    config = ModelConfig(vocab_size=300, d_model=32, num_layers=1, num_heads=2)
    TransformerLM(config).quantize("int8").save_pretrained(tmp_path)
    assert "costs are computed for floating-point matrices" in error_line(capsys, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "prenorm accept" in error_line(capsys, tmp_path)
    (tmp_path / "prenorm_manifest.json").unlink()
    assert "model_type must be one of" in error_line(capsys, tmp_path)
