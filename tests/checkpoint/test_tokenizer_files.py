"""What belongs to a model's tokenizer travels with the model, and nothing else does."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from prenorm import TransformerLM
from prenorm.checkpoint import tokenizer_files
from prenorm.checkpoint.folder import load, save
from prenorm.checkpoint.tokenizer import open_tokenizer
from prenorm.errors import CheckpointError

from .examples import config, tensors_of

CHAT = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


def tokenizer(words="abcdefgh"):
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "<s>", "</s>", "?"])}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="?")


@pytest.fixture
def folder(tmp_path):
    """A Llama, with all that transformers saves beside a model."""
    folder = tmp_path / "llama"
    save(folder, config(), tensors_of(config()), eos_token_ids=(9,))
    theirs = tokenizer()
    theirs.chat_template = {"default": CHAT, "tool_use": CHAT + "!"}
    theirs.save_pretrained(folder)
    GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[9, 8]).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"\x00sentencepiece")
    (folder / "README.md").write_text("not the model's business")
    return folder


def contents_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("max_shard_size", [None, "8KB"])
def test_tokenizer_special_tokens_chat_templates_and_generation_config_travel(folder, tmp_path, max_shard_size):
    TransformerLM.from_pretrained(folder).save_pretrained(tmp_path / "out", max_shard_size=max_shard_size)
    before, after = contents_of(folder), contents_of(tmp_path / "out")
    names = {name for name in before if name.startswith(("tokenizer", "special", "chat", "additional"))}
    assert {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja"} <= names
    assert "additional_chat_templates/tool_use.jinja" in names
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert "README.md" not in after
    assert json.loads(after["generation_config.json"]) == json.loads(before["generation_config.json"])
    theirs = [AutoTokenizer.from_pretrained(one) for one in (folder, tmp_path / "out")]
    text, chat = "a b unknown c", [{"role": "user", "content": "d"}]
    assert theirs[0](text)["input_ids"] == theirs[1](text)["input_ids"] == open_tokenizer(folder).encode(text).ids
    for template in (None, "tool_use"):
        assert len({one.apply_chat_template(chat, chat_template=template, tokenize=False) for one in theirs}) == 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.top_p == 0.9


def test_the_folder_that_a_model_came_from_need_not_be_there_any_more(folder, tmp_path):
    model, content = TransformerLM.from_pretrained(folder), (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").unlink()
    model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == content


def test_a_tokenizer_that_was_changed_in_the_folder_itself_is_left_alone(folder):
    model = TransformerLM.from_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    model.save_pretrained(folder)
    assert (folder / "tokenizer_config.json").read_text() == "{}"
    assert (folder / "tokenizer.model").exists()


def test_another_models_tokenizer_is_replaced_as_a_whole(folder, tmp_path):
    other = tmp_path / "other"
    tokenizer("xyz").save_pretrained(other)
    (other / "vocab.json").write_text("{}")
    (other / "notes.txt").write_text("mine")
    TransformerLM.from_pretrained(folder).save_pretrained(other)
    assert "vocab.json" not in contents_of(other)
    assert (other / "notes.txt").read_text() == "mine"
    assert (other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_model_without_a_tokenizer_leaves_that_of_the_folder(folder, tmp_path):
    save(folder, config(), tensors_of(config(), seed=1), eos_token_ids=(9,))
    assert (folder / "tokenizer.json").exists()
    assert torch.equal(load(folder).tensors["lm_head.weight"], tensors_of(config(), seed=1)["lm_head.weight"])


def test_files_larger_than_any_tokenizer_are_refused(folder, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "MAX_BYTES", 500)
    with pytest.raises(CheckpointError, match=r"makes the files of the tokenizer larger than 500 bytes, which no tok"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"leads out of its folder"):
        load(folder)
