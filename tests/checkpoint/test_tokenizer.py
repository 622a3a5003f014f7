import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from prenorm.checkpoint.tokenizer import open_tokenizer
from prenorm.errors import CheckpointError


def saved(folder):
    tokenizer = Tokenizer(models.BPE({chr(ord("a") + i): i for i in range(26)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.enable_padding(length=10)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def test_an_opened_tokenizer_neither_pads_nor_truncates(tmp_path):
    saved(tmp_path)
    assert len(open_tokenizer(tmp_path).encode("abcd").ids) == 4


def test_a_folder_without_a_readable_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        open_tokenizer(tmp_path)
    for content in (json.dumps({"model": "none"}), "", "[" * 10**5, "\x00", "{}"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer that can be read"):
            open_tokenizer(tmp_path)


def test_a_tokenizer_in_another_folder_is_not_opened(tmp_path):
    saved(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"leads out of its folder"):
        open_tokenizer(tmp_path / "folder")
