import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prenorm import ModelConfig, TransformerLM
from prenorm.checkpoint.tokenizer import open_tokenizer
from prenorm.cli.main import main
from prenorm.training.tokenizer import tokenizer_files, train_tokenizer, vocabulary_size

TEXT = "def main(x):\n    return x + 123456  # naïve 世界\n\n\nclass Test:\n    pass\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What `prenorm train` leaves: the files of its tokenizer first, then those of the model."""
    folder, tokenizer = tmp_path_factory.mktemp("runs") / "mine", train_tokenizer([TEXT], 300)
    folder.mkdir()
    for name, content in tokenizer_files(tokenizer).items():
        (folder / name).write_bytes(content)
    (folder / "config.toml").write_text("steps = 1\n")
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(vocabulary_size(tokenizer), 16, 2, 2, d_ff=24, max_seq_len=64, qk_norm=True))
    model.eos_token_ids = (0,)
    model.save_pretrained(folder)
    return folder


def error_line(argv, capsys):
    assert main(["export", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("flags", [[], ["--max-shard-size", "4KB"], ["--dtype", "bfloat16"]])
def test_transformers_opens_the_folder_with_the_same_ids_and_logits(trained, tmp_path, flags, capsys):
    assert main(["export", str(trained), "--folder", str(tmp_path / "out"), *flags]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    ours = TransformerLM.from_pretrained(tmp_path / "out")
    for text in (TEXT, "", "<|endoftext|>x", "日本\x00 é\u0301", "   \n\t x" * 20):
        ids = tokenizer(text)["input_ids"]
        assert ids == open_tokenizer(trained).encode(text).ids == open_tokenizer(tmp_path / "out").encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == open_tokenizer(trained).decode(ids)
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == 0
    with torch.no_grad():
        ids = torch.tensor([tokenizer(TEXT)["input_ids"][:40]])
        if "bfloat16" in flags:
            assert theirs.dtype == ours.embedding.weight.dtype == torch.bfloat16
        else:
            torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_gguf_file_is_written_and_what_differs_is_said(trained, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    assert main(["export", str(trained), "--gguf", str(tmp_path / "model.gguf"), "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'model.gguf'}\n"
    assert "llama.cpp has no name for how this tokenizer cuts a text" in captured.err
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["general.name"].contents() == "mine"
    assert reader.fields["general.architecture"].contents() == "qwen3"
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"BF16", "F32"}


def test_what_cannot_be_exported_is_refused(trained, tmp_path, capsys):
    assert "there is nothing to write; --gguf FILE or --folder FOLDER" in error_line([trained], capsys)
    assert "is the run itself" in error_line([trained, "--folder", trained], capsys)
    assert "add --folder, or leave it out" in error_line([trained, "--gguf", "x", "--max-shard-size", "1GB"], capsys)
    assert "there is no folder" in error_line([tmp_path / "none", "--gguf", "x"], capsys)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.toml").write_text("")
    assert "has not ended" in error_line([tmp_path / "unfinished", "--gguf", "x"], capsys)
    TransformerLM.from_pretrained(trained).quantize("int8").save_pretrained(tmp_path / "int8")
    assert "is rounded to int8" in error_line([tmp_path / "int8", "--gguf", tmp_path / "x"], capsys)
    fields = json.loads((trained / "config.json").read_text())
    assert fields["model_type"] == "qwen3"
